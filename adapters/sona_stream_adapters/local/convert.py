"""GGUF to a Hugging Face folder, once, in a process of its own: ``python -m sona_stream_adapters.local.convert``.

A separate process keeps half a minute of CPU and a gigabyte of memory out of a running server. Transformers
dequantises; the state dict goes into a fresh model (one loaded from GGUF refuses to be saved because of its
quantisation config), and the tokenizer is rebuilt from the vocabulary and merges that the GGUF stores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["convert"]

_NOT_CONFIG = {
    "quantization_config",
    "_name_or_path",
    "_model_name_or_path",
    "model_type",
    "architectures",
    "transformers_version",
    "dtype",
}
_CONTEXT = 8192
_CONTROL_TOKEN = 3  # GGUF's token type of special tokens


def convert(gguf: Path, out: Path) -> None:
    """Write `out` (config, bfloat16 safetensors, tokenizer). Raises ValueError for another kind of
    file, or if the copy computes differently.
    """
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{gguf.name} is not a GGUF file")
    _convert_weights(gguf, out)
    _convert_tokenizer(gguf, out)
    # Older readers look for rope_theta at the top level, and GGUF rounds the epsilon.
    _edit(out / "config.json", rms_norm_eps=1e-5, rope_theta=100000.0)
    _edit(out / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _convert_weights(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = {k: v for k, v in source.config.to_dict().items() if k not in _NOT_CONFIG}
    model = LlamaForCausalLM(LlamaConfig(**config))
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"the GGUF file does not fit a Llama: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    ids = torch.arange(50, 80)[None]
    with torch.no_grad():
        if not torch.equal(source.eval()(ids).logits, model.eval()(ids).logits):
            raise ValueError("the converted model's logits differ from the GGUF model's")
    model.to(torch.bfloat16).save_pretrained(out)


def _convert_tokenizer(gguf: Path, out: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(str(gguf))

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    words = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [w for w, kind in zip(words, field("ggml.token_type"), strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = field("chat_template")
    fast.save_pretrained(out)


def _edit(path: Path, **changes: Any) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**old, **changes}, indent=2), encoding="utf-8")


def main(argv: list[str]) -> None:
    """``GGUF OUT``: paths of the file to read and the folder to write."""
    convert(Path(argv[0]), Path(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])

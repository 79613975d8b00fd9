"""A causal language model for the examples: the local default when its weights are here, else a tiny random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sona_stream_adapters.local.weights import find_model

__all__ = ["LanguageModel", "load"]


@dataclasses.dataclass
class LanguageModel:
    """``model`` is transformers' LlamaForCausalLM; its layers are ``model.model.layers``."""

    model: Any
    encode: Callable[[str], torch.Tensor]
    """prompt -> token ids (1, T)"""
    decode: Callable[[torch.Tensor], str]
    name: str

    @property
    def hidden_dim(self) -> int:
        """Size of the hidden states."""
        return int(self.model.config.hidden_size)


def load(*, tiny: bool = False) -> LanguageModel:
    """SmolLM2-135M-Instruct (`sona-stream models pull` fetches it), or with ``tiny`` random weights and bytes."""
    folder = None if tiny else find_model("smollm2-135m-instruct")
    if folder is None:
        return _tiny()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    def encode(prompt: str) -> torch.Tensor:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

    return LanguageModel(model, encode, lambda ids: tokenizer.decode(ids, skip_special_tokens=True), folder.name)


def _tiny() -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=256, attn_implementation="eager", **sizes)
    config.pad_token_id = config.eos_token_id = config.bos_token_id = None
    return LanguageModel(
        LlamaForCausalLM(config).eval(),
        lambda prompt: torch.tensor([list(prompt.encode())]),
        lambda ids: bytes(ids.tolist()).decode(errors="replace"),
        "tiny random Llama",
    )

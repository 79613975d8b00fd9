"""An exported folder in stock vLLM, against transformers' W(h + BAh) and against the plug-in's hook."""

from __future__ import annotations

import numpy as np
import pytest
from engine import Engine, Reference, adapter_arrays
from tiny_model import save_tiny_model

from sona_stream.lora import AdapterRecord, LoraWeights, LowRank

PROMPTS = [[5 + 3 * i + j for j in range(7 + 4 * i)] for i in range(2)]


def learned(folder, arrays):
    from sona_stream_adapters.peft.checkpoint import Checkpoint

    pairs = {
        name: LowRank(arrays[f"{name}.lora_A"], arrays[f"{name}.lora_B"], scaling)
        for name, scaling in (("micro", 1.0), ("base", 0.5))
    }
    fingerprint = Checkpoint(folder).fingerprint()
    return AdapterRecord(
        key="tiny/acme/*", version=2, parent=1, fingerprint=fingerprint, weights=LoraWeights(**pairs), reason="step"
    )


class Stock(Engine):
    """vLLM as it comes, with LoRA on lm_head. A slot more than adapters: on the CPU a request without adapter gets
    the last slot's, whose index is -1 (vLLM's `bgmv_shrink`), so that one must be empty.
    """

    def __init__(self, folder, **options):
        from vllm import LLM

        self.llm = LLM(
            model=str(folder),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=8,
            max_logprobs=-1,
            logprobs_mode="raw_logits",
            enable_lora=True,
            max_lora_rank=8,
            max_loras=2,
            lora_target_modules=["lm_head"],
            **options,
        )
        self.v = self.llm.model_config.get_vocab_size()

    def adapted(self, out, prompts):
        """The first prompt with the exported adapter, the others without, in one batch."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=-1)
        lora = [LoRARequest("acme", 1, str(out)), *[None] * (len(prompts) - 1)]
        batch = [{"prompt_token_ids": list(p)} for p in prompts]
        outputs = self.llm.generate(batch, greedy, lora_request=lora, use_tqdm=False)
        return [self._answer(one, True) for one in outputs]


def stock(folder, out, prompts):
    """(answers without, answers with the adapter on the first)"""
    engine = Stock(folder)
    try:
        return engine.generate(prompts), engine.adapted(out, prompts)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """Tied weights, and a vocabulary that vLLM pads."""
    return save_tiny_model(
        tmp_path_factory.mktemp("odd"),
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=330,
        tie_word_embeddings=True,
    )


def test_stock_vllm_serves_the_exported_folder(odd_folder, tmp_path):
    from sona_stream_adapters.peft.lora_folder import write_lora_folder

    arrays = adapter_arrays(128, seed=1, base_rank=5, scale=0.2)
    write_lora_folder(learned(odd_folder, arrays), model=str(odd_folder), out=tmp_path / "out")
    plain, (adapted, other) = stock(odd_folder, tmp_path / "out", PROMPTS)
    reference = Reference(odd_folder)
    expected = reference.logits(PROMPTS[0], adapted.ids, arrays, {"base": 0.5})
    error = np.abs(adapted.logits - expected).max()
    print(f"stock LoRA against transformers: {error:.2g}, effect {np.abs(plain[0].logits - expected).max():.2g}")
    assert error < 1e-4
    assert np.abs(plain[0].logits[0] - expected[0]).max() > 0.1
    assert np.array_equal(other.logits, plain[1].logits)


def test_the_models_name_in_vllm_is_known_outside(engine, model_folder):
    from sona_stream_adapters.peft.checkpoint import Checkpoint
    from sona_stream_adapters.peft.source import fingerprint_in_vllm

    assert fingerprint_in_vllm(Checkpoint(model_folder)) == engine.info["fingerprint"]


def test_stock_vllm_equals_the_hook(engine, model_folder, tmp_path):
    from sona_stream_adapters.peft.lora_folder import write_lora_folder

    arrays = adapter_arrays(128, seed=2, base_rank=5, scale=0.2)
    write_lora_folder(learned(model_folder, arrays), model=str(model_folder), out=tmp_path / "out")
    engine.put("tiny/acme/*", 2, arrays, **{"base.scaling": 0.5})
    hooked = engine.generate(PROMPTS, [{"sona": "tiny/acme/*"}, None])
    _, (adapted, _) = stock(model_folder, tmp_path / "out", PROMPTS)
    assert adapted.ids == hooked[0].ids
    error = np.abs(adapted.logits - hooked[0].logits).max()
    print(f"stock LoRA against the hook: {error:.2g}")
    assert error < 1e-4


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_in_stock_vllm(tmp_path):
    """Within twice the error that the engine has without any adapter."""
    from sona_stream_adapters.local.weights import pull_model
    from sona_stream_adapters.peft.lora_folder import write_lora_folder

    folder = pull_model("smollm2-135m-instruct")
    arrays = adapter_arrays(576, seed=1, base_rank=5, scale=0.2)
    write_lora_folder(learned(folder, arrays), model="smollm2-135m-instruct", out=tmp_path / "out")
    prompts = [[504, 2365, 282, 4649, 314], [1, 4093, 198, 28120]]
    plain, (adapted, other) = stock(folder, tmp_path / "out", prompts)
    reference = Reference(folder)
    noise = np.abs(plain[0].logits - reference.logits(prompts[0], plain[0].ids)).max()
    expected = reference.logits(prompts[0], adapted.ids, arrays, {"base": 0.5})
    error = np.abs(adapted.logits - expected).max()
    effect = np.abs(expected - reference.logits(prompts[0], adapted.ids)).max()
    print(f"SmolLM2: stock LoRA {error:.2g}, without adapter {noise:.2g}, effect {effect:.2g}")
    assert effect > 1
    assert error <= 2 * noise
    assert np.array_equal(other.logits, plain[1].logits)

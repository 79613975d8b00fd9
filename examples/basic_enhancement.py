"""The guide's "Basic LLM Enhancement": the micro-LoRA before every layer of a real transformer.

    python examples/basic_enhancement.py [--tiny]

One trajectory a prompt, its quality from the unenhanced model's own likelihood of the answer. The engine applies
one micro-LoRA to every layer, as the guide has it; the product adapts the final hidden state instead, where an
exact gradient is cheap (see `live_adaptation.py`).
"""

import argparse
import math

import torch
from language_model import LanguageModel, load

from sona_stream.engine import SonaConfig, SonaEngine

PROMPTS = ["What is the capital of France?", "Name a primary colour.", "Who wrote Hamlet?"]


def enhanced(lm: LanguageModel, engine: SonaEngine) -> list[torch.utils.hooks.RemovableHandle]:
    """Puts the engine in front of every layer: (1, T, d) -> (1, T, d)."""

    def before_layer(_layer: object, arguments: tuple) -> tuple:
        hidden = arguments[0]
        adapted = engine.apply_micro_lora(hidden[0].numpy())
        return (torch.from_numpy(adapted)[None], *arguments[1:])

    return [layer.register_forward_pre_hook(before_layer) for layer in lm.model.model.layers]


def assess_quality(lm: LanguageModel, ids: torch.Tensor, start: int) -> float:
    """The exponential of the mean log-probability of the answer under the model as it is: in [0, 1]."""
    logits = lm.model(ids).logits[0, start - 1 : -1]
    chosen = torch.log_softmax(logits, -1).gather(1, ids[0, start:, None])
    return math.exp(chosen.mean().item())


def enhanced_inference(lm: LanguageModel, engine: SonaEngine, prompt: str, tokens: int) -> tuple[str, float]:
    """The answer and its quality; the engine has learned from it afterwards."""
    prompt_ids = lm.encode(prompt)
    embedding = lm.model.get_input_embeddings()(prompt_ids)[0].mean(0).numpy()
    trajectory = engine.begin_trajectory(embedding)

    hooks = enhanced(lm, engine)
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    ids = lm.model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids), **options)
    last = lm.model(ids, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()

    quality = assess_quality(lm, ids, prompt_ids.shape[1])
    hidden, attention = last.hidden_states[-2][0, -1], last.attentions[-1][0, :, -1].mean(0)
    engine.add_trajectory_step(trajectory, hidden.numpy(), attention.numpy(), quality)
    engine.end_trajectory(trajectory, quality)
    engine.tick()
    return lm.decode(ids[0, prompt_ids.shape[1] :]), quality


def main() -> None:
    """Two rounds over the prompts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true", help="a tiny random model instead of the real one")
    options.add_argument("--tokens", type=int, default=10)
    args = options.parse_args()
    lm = load(tiny=args.tiny)
    engine = SonaEngine.with_config(SonaConfig(hidden_dim=lm.hidden_dim, micro_lora_rank=2, quality_threshold=0.4))
    print(f"{lm.name}: {len(lm.model.model.layers)} layers of {lm.hidden_dim}")
    with torch.inference_mode():
        for turn in (1, 2):
            for prompt in PROMPTS:
                answer, quality = enhanced_inference(lm, engine, prompt, args.tokens)
                print(f"{turn}. {prompt:<32} quality {quality:.2f}  {answer!r}")
    print(engine.get_stats())


if __name__ == "__main__":
    main()

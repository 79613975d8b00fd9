"""The original package's "LLM Integration Example": a class around a real transformer, one step a layer.

    python examples/adaptive_llm.py [--tiny]

`basic_enhancement.py` records one step an answer; here every layer is a step of its own, with its activations, its
attention and its reward, and trains the base LoRA of its layer.
"""

import argparse

import torch
from language_model import LanguageModel, load

from sona_stream.engine import SonaEngine


class AdaptiveLLM:
    """Generates text and learns from how well each layer's state foretells the next token."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.sona = SonaEngine.with_config(
            {"hiddenDim": lm.hidden_dim, "microLoraRank": 2, "baseLoraRank": 16, "microLoraLr": 0.002,
             "qualityThreshold": 0.7, "backgroundIntervalMs": 60_000}
        )  # fmt: skip

    def generate(self, prompt: str, tokens: int) -> tuple[str, float]:
        """The answer and its quality in [0, 1]."""
        ids = self.lm.encode(prompt)
        start = ids.shape[1]
        embedding = self.lm.model.get_input_embeddings()(ids)[0].mean(0)
        trajectory = self.sona.begin_trajectory(embedding.numpy())
        qualities = []
        for _ in range(tokens):
            token, quality = self.run_inference(trajectory, ids)
            qualities.append(quality)
            ids = torch.cat([ids, token[None, None]], dim=1)
        quality = sum(qualities) / len(qualities)
        self.sona.end_trajectory(trajectory, quality)
        status = self.sona.tick()
        if status:
            print("background learning:", status)
        return self.lm.decode(ids[0, start:]), quality

    def run_inference(self, trajectory: int, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
        """(next token, its probability). One step a layer, read through the model's own output head."""
        model = self.lm.model
        out = model(ids, output_hidden_states=True, output_attentions=True)
        layers = list(zip(out.hidden_states[1:-1], out.attentions[:-1], strict=True))
        token = out.logits[0, -1].argmax()
        for number, (hidden, attention) in enumerate(layers):
            activations = hidden[0, -1]
            enhanced = torch.from_numpy(self.sona.apply_micro_lora(activations.numpy()))
            foretold = model.lm_head(model.model.norm(enhanced)).softmax(-1)
            weights = attention[0, :, -1].mean(0)
            reward = float(foretold[token])
            self.sona.add_trajectory_step(trajectory, activations.numpy(), weights.numpy(), reward, layer=number)
        return token, float(out.logits[0, -1].softmax(-1)[token])


def main() -> None:
    """A few prompts, then what was learned."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true", help="a tiny random model instead of the real one")
    options.add_argument("--tokens", type=int, default=8)
    args = options.parse_args()
    llm = AdaptiveLLM(load(tiny=args.tiny))
    with torch.inference_mode():
        for prompt in ("What is the capital of France?", "What colour is the sky?"):
            answer, quality = llm.generate(prompt, args.tokens)
            print(f"{prompt:<32} quality {quality:.2f}  {answer!r}")
    print("forced:", llm.sona.force_learn())


if __name__ == "__main__":
    main()

"""A tiny random Llama with a tokenizer trained here, a backend that runs it, and requests for it."""

from __future__ import annotations

import asyncio
import contextlib

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import NotReady
from sona_stream.events import Delta, Finish, Head, Request, Sampling

VOCAB = 320
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_tiny_model(folder, *, seed=0, **overrides):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog: naïve ↔ 漢字"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "eos_token_id": 0,
            "bos_token_id": None,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        }
        | overrides
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[0] = 0  # so that a random model hardly ever ends by itself
        model.lm_head.weight[1:] *= 2
    model.save_pretrained(folder)
    return folder


@contextlib.asynccontextmanager
async def running(folder, *, settings=None, **params):
    from sona_stream_adapters.local import create_backend

    deployment = Deployment(
        model_name="tiny", provider="local", upstream_model=str(folder), params={"threads": 1, **params}
    )
    backend = create_backend(deployment, settings or SonaSettings())
    async with backend:
        while True:
            try:
                await backend.probe()
                break
            except NotReady:
                await asyncio.sleep(0.01)
        yield backend


def ask(text="the quick brown", *, id="r", adapter=None, learn=True, endpoint="completions", **sampling):
    sampling = {"temperature": 0.0, "max_tokens": 8, **sampling}
    return Request(
        id=id,
        endpoint=endpoint,
        model="tiny",
        body=b"{}",
        prompt=text if endpoint == "completions" else None,
        messages=({"role": "user", "content": text},) if endpoint == "chat.completions" else (),
        sampling=Sampling(**sampling),
        adapter=adapter,
        learn=learn,
    )


class Answer:
    def __init__(self, events):
        assert isinstance(events[0], Head)
        assert isinstance(events[-1], Finish)
        self.head, self.finish = events[0], events[-1]
        self.pieces = [piece for event in events if isinstance(event, Delta) for piece in event.pieces]

    def of(self, index=0):
        return [piece for piece in self.pieces if piece.index == index]

    def text(self, index=0):
        return "".join(piece.text for piece in self.of(index))

    def ids(self, index=0):
        return [token for piece in self.of(index) for token in piece.token_ids]

    def logprobs(self, index=0):
        return [value for piece in self.of(index) for value in piece.logprobs]


async def collect(backend, request):
    async with backend(request) as events:
        return Answer([event async for event in events])

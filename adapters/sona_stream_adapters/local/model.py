"""A loaded causal language model: weights in float32, tokenizer, and the numbers that identify them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from sona_stream.errors import HostError, ModelUnavailable

from .fingerprint import model_fingerprint
from .kv_cache import SlotCache
from .layer_hooks import LayerHooks, Rows
from .linear import Packing, linear, pack

__all__ = ["LanguageModel", "load_model"]


@dataclasses.dataclass(slots=True, eq=False)
class LanguageModel:
    """Decoder, lm_head and tokenizer. ``decode(hidden) = hidden @ lm_head.T + lm_bias`` are the logits."""

    name: str
    decoder: Any
    lm_head: torch.Tensor
    """(V, d) float32"""
    lm_bias: torch.Tensor | None
    """(V,) float32"""
    packed_head: torch.Tensor
    """lm_head once more, laid out for products"""
    tokenizer: Any
    fingerprint: str
    context: int
    """positions, prompt and answer together"""
    eos_ids: frozenset[int]
    temperature: float
    top_p: float
    layer_hooks: LayerHooks | None = None
    """where layers inside the model are adapted"""

    @property
    def hidden_dim(self) -> int:
        """D"""
        return int(self.lm_head.shape[1])

    @property
    def vocab_size(self) -> int:
        """V"""
        return int(self.lm_head.shape[0])

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.decoder.config.num_hidden_layers)

    @property
    def cache_bytes_per_token(self) -> int:
        """Memory of one position of one row, keys and values of all layers."""
        config = self.decoder.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * 4 * self.layers * int(heads) * int(width)

    def new_cache(self, rows: int = 1) -> SlotCache:
        """An empty cache for this model."""
        return SlotCache(self.layers, rows=rows)

    @property
    def adapted_layers(self) -> int:
        """How many layers adapters may change: all or none."""
        return 0 if self.layer_hooks is None else self.layer_hooks.count

    def prefill(self, ids: torch.Tensor, cache: SlotCache, adapters: Rows = ()) -> torch.Tensor:
        """Further `ids` (n, t) of equally long rows -> final hidden states (n, t, d), through the layers of their
        `adapters`.
        """
        start = cache.lengths[0] if cache.lengths else 0
        mask = cache.plan_chunk(ids.shape[0], ids.shape[1])
        positions = torch.arange(start, start + ids.shape[1])[None].expand(ids.shape[0], -1)
        return self._forward(ids, positions, mask, cache, adapters)

    def step(self, ids: torch.Tensor, cache: SlotCache, adapters: Rows = ()) -> torch.Tensor:
        """One token for every active row: `ids` (rows,) -> final hidden states (rows, d), as in `prefill`."""
        positions, mask = cache.plan_step()
        return self._forward(ids[:, None], positions[:, None], mask, cache, adapters)[:, -1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, V)."""
        return linear(hidden, self.packed_head, self.lm_bias)

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        cache: SlotCache | None,
        adapters: Rows,
    ) -> torch.Tensor:
        with nullcontext() if self.layer_hooks is None else self.layer_hooks.using(adapters):
            out = self.decoder(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden

    def read(self, ids: torch.Tensor, mask: torch.Tensor, adapters: Rows) -> torch.Tensor:
        """Whole texts `ids` (n, t) at once under the additive `mask` (1, 1, t, t) -> final states (n, t, d). With
        `layer_hooks` autograd sees through it.
        """
        positions = torch.arange(ids.shape[1])[None].expand(ids.shape[0], -1)
        return self._forward(ids, positions, mask, None, adapters)

    def plain_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `logits`, by a product that autograd knows."""
        return torch.nn.functional.linear(hidden, self.lm_head, self.lm_bias)

    def require_hooks(self) -> LayerHooks:
        """Raises HostError where layers are not adapted."""
        if self.layer_hooks is None:
            raise HostError("litellm_params.layers names no layer of this model to adapt")
        return self.layer_hooks


def load_model(folder: Path, *, name: str, layered: bool = False) -> LanguageModel:
    """Read a Hugging Face folder, in float32. Raises ModelUnavailable when it cannot be loaded, or when this
    host would compute something else than the model's own forward pass. `layered`: layers inside are adapted; their
    weights are then not packed, since autograd goes through them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelUnavailable(f"the model in {folder} cannot be loaded: {error}") from error
    model.eval().requires_grad_(False)
    head = model.get_output_embeddings()
    weight = head.weight.detach()
    bias = getattr(head, "bias", None)
    loaded = LanguageModel(
        name=name,
        decoder=model.get_decoder(),
        lm_head=weight,
        lm_bias=None if bias is None else bias.detach(),
        packed_head=pack(weight),
        tokenizer=tokenizer,
        fingerprint=model_fingerprint(sorted(model.state_dict().items()), model.config, tokenizer),
        context=_context(model.config),
        eos_ids=_eos_ids(model, tokenizer),
        temperature=_default_temperature(model.generation_config),
        top_p=_default_top_p(model.generation_config),
    )
    _settle_computation(model, loaded, packed=not layered)
    if layered:
        loaded.layer_hooks = LayerHooks(loaded.decoder)
    return loaded


def _context(config: Any) -> int:
    """Within a sliding window, full attention is the same computation; beyond it, it is not."""
    limits = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions", "sliding_window")]
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else 2048


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for value in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        if value is not None:
            found.update(value if isinstance(value, list) else [value])
    return frozenset(found)


def _default_temperature(config: Any) -> float:
    """As transformers' own `generate` reads it: without do_sample a model answers greedily."""
    if not getattr(config, "do_sample", False):
        return 0.0
    return 1.0 if config.temperature is None else float(config.temperature)


def _default_top_p(config: Any) -> float:
    return 1.0 if not getattr(config, "do_sample", False) or config.top_p is None else float(config.top_p)


@torch.inference_mode()
def _settle_computation(model: Any, loaded: LanguageModel, *, packed: bool) -> None:
    """Pack the weights, and check what this host computes against the forward pass of the model as loaded."""
    ids = torch.arange(2, 18) % loaded.vocab_size
    own = model(input_ids=ids[None], use_cache=False).logits[0]
    packing = Packing(loaded.decoder if packed else torch.nn.Module())
    try:
        _check_same_computation(model, loaded, ids, own)
        packing.commit()
    except ModelUnavailable:
        packing.undo()
        loaded.packed_head = loaded.lm_head
        _check_same_computation(model, loaded, ids, own)


def _check_same_computation(model: Any, loaded: LanguageModel, ids: torch.Tensor, own: torch.Tensor) -> None:
    """Ragged decoding of two short rows. Catches architectures whose logits are not lm_head(hidden), or that keep
    another kind of state.
    """
    try:
        cache, batch = loaded.new_cache(), loaded.new_cache(2)
        loaded.prefill(ids[None, :9], cache)
        batch.adopt(cache, 0, 6)
        batch.adopt(cache, 0, 9)
        first = loaded.logits(loaded.step(ids[[6, 9]], batch))
        second = loaded.logits(loaded.step(ids[[7, 10]], batch))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise ModelUnavailable(
            f"{type(model).__name__} cannot be decoded in ragged batches: {error}. Serve it with another server "
            "and name it as openai/<model>"
        ) from error
    difference = (torch.cat([first, second]) - own[[6, 9, 7, 10]]).abs().max()
    if not difference <= 2e-3 * own.abs().max():  # rounding; a wrong architecture is off by the size of the logits
        raise ModelUnavailable(
            f"{type(model).__name__} is not supported in process: its logits are not lm_head of the final hidden "
            "state, or its cache is not keys and values. Serve it with another server and name it as openai/<model>"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading prints a progress bar and hints that are not about us."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()

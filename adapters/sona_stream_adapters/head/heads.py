"""What a model does with its final hidden state, described so that it can be differentiated:

    raw_v = w_v . h + bias_v          z_v = scale * f(raw_v)          f(x) = x, or cap * tanh(x / cap)

over the tokens of the vocabulary (rows that only pad it are not tokens). Temperature comes with each capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Protocol

import torch

from sona_stream.errors import HostError

from .shard import Shard
from .weight_rows import WeightRows

__all__ = ["DenseHead", "Head", "SampledHead"]


class Head(Protocol):
    """A head as `BaseLogits` asks for it. `DenseHead` and `SampledHead` are the two there are."""

    @property
    def hidden_dim(self) -> int:
        """D"""
        ...

    @property
    def vocab_size(self) -> int:
        """V, of all shards together."""
        ...

    @property
    def device(self) -> torch.device:
        """Where products with this head are made."""
        ...

    @property
    def scale(self) -> float:
        """Of the logits, after the soft cap."""
        ...

    @property
    def soft_cap(self) -> float | None: ...
    @property
    def shard(self) -> Shard:
        """Which tokens are here."""
        ...

    @property
    def whole(self) -> WeightRows | None:
        """All rows of this shard, or None where only some at a time can be had."""
        ...

    def rows(self, ids: torch.Tensor) -> Generator[None, None, WeightRows]:
        """`ids` (k,) int64, counted from the shard's first token. Yields where a slice may end."""
        ...

    def ranked(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, v): anything that orders each row's tokens as the logits do."""
        ...

    def kept(self, top_k: int | None) -> int | None:
        """Tokens a position keeps when `top_k` is asked for; None = all."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, v): what the model itself would say, float32, before temperature."""
        ...


class DenseHead:
    """Rows at hand: `weight` (rows, d) of any float dtype, this shard's tokens first; rows beyond them are padding
    and cut. `bias` (rows,) likewise. `packed` as in `WeightRows`, only where nothing is cut.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        vocab_size: int | None = None,
        scale: float = 1.0,
        soft_cap: float | None = None,
        shard: Shard | None = None,
        packed: torch.Tensor | None = None,
        block_bytes: int | None = None,
    ) -> None:
        if weight.ndim != 2 or not weight.dtype.is_floating_point:
            raise HostError(f"lm_head: expected a float matrix (V, d), not {tuple(weight.shape)} {weight.dtype}")
        self.vocab_size = weight.shape[0] if vocab_size is None else vocab_size
        self.shard = Shard(0, self.vocab_size) if shard is None else shard
        tokens = len(self.shard)
        if self.shard.stop > self.vocab_size or (self.shard.alone and tokens != self.vocab_size):
            raise HostError(
                f"lm_head: tokens {self.shard.start}..{self.shard.stop} of a vocabulary of {self.vocab_size}"
            )
        for name, part in (("weight", weight), ("bias", bias)):
            if part is not None and part.shape[0] < tokens:
                raise HostError(f"lm_head.{name} has {part.shape[0]} rows for {tokens} tokens")
        self.scale, self.soft_cap = _check_shape(scale, soft_cap)
        self._rows = WeightRows(
            weight[:tokens].detach(),
            None if bias is None else bias[:tokens].detach(),
            packed=packed if tokens == weight.shape[0] else None,
            block_bytes=block_bytes,
        )

    @property
    def hidden_dim(self) -> int:
        """D"""
        return int(self._rows.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self._rows.weight.device

    @property
    def whole(self) -> WeightRows:
        """All of them."""
        return self._rows

    def rows(self, ids: torch.Tensor) -> Generator[None, None, WeightRows]:
        """Copies of these rows, at once."""
        yield from ()
        return self._rows.take(ids)

    def ranked(self, hidden: torch.Tensor) -> torch.Tensor:
        """The raw logits: scale is positive and a soft cap rises."""
        return self._rows.logits(hidden)

    def kept(self, top_k: int | None) -> int | None:
        """As asked for."""
        return None if top_k is None or top_k >= self.vocab_size else top_k

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The shard's (n, v). Compare with the model's own once, before trusting this description of it."""
        raw = self._rows.logits(hidden)
        if self.soft_cap is not None:
            raw.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return raw.mul_(self.scale)

    def difference(self, hidden: torch.Tensor, model_logits: torch.Tensor) -> float:
        """Between this description and the model's own logits (n, V >= vocab_size) of `hidden` (n, d): the largest,
        relative to their size. The same number on every rank, so that all of them decide alike.
        """
        expected = model_logits[:, : self.vocab_size].float()
        own = self.logits(hidden) - expected[:, self.shard.start : self.shard.stop]
        worst = self.shard.row_max(own.abs_()).amax()
        return float(worst / expected.abs().amax().clamp_min(1e-12))


class SampledHead:
    """A head whose matrix is out of reach (quantised, remote): `model_logits` (n, d) -> (n, V) is the model's own
    answer, scale and cap included, the same on every rank; `dequantised` (k,) int64 ids -> (k, d) rows, or a
    generator that returns them and yields between slices, where that takes long.

    Gradients are exact for the kept rows: the labels and each position's `top_k` likeliest tokens under the base
    model, or as many as a caller asks for, but never the whole vocabulary unasked. An evaluation needs no rows and
    is over the whole vocabulary.
    """

    def __init__(
        self,
        model_logits: Callable[[torch.Tensor], torch.Tensor],
        dequantised: Callable[[torch.Tensor], torch.Tensor | Generator[None, None, torch.Tensor]],
        *,
        hidden_dim: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
        bias: torch.Tensor | None = None,
        scale: float = 1.0,
        soft_cap: float | None = None,
        top_k: int = 64,
        block_bytes: int | None = None,
    ) -> None:
        if top_k < 1:
            raise HostError(f"top_k {top_k} must be at least 1")
        self.hidden_dim, self.vocab_size, self.device = hidden_dim, vocab_size, torch.device(device)
        self.shard = Shard(0, vocab_size)
        self.scale, self.soft_cap = _check_shape(scale, soft_cap)
        self._model_logits, self._dequantised, self._bias = model_logits, dequantised, bias
        self._top_k, self._block_bytes = top_k, block_bytes

    @property
    def whole(self) -> None:
        """Not to be had."""
        return

    def rows(self, ids: torch.Tensor) -> Generator[None, None, WeightRows]:
        """Asked for and checked. Raises HostError on another shape."""
        found = self._dequantised(ids)
        weight = found if isinstance(found, torch.Tensor) else (yield from found)
        if weight.shape != (len(ids), self.hidden_dim):
            raise HostError(
                f"dequantised rows have shape {tuple(weight.shape)}, not ({len(ids)}, {self.hidden_dim})"
            )
        bias = None if self._bias is None else self._bias[ids]
        return WeightRows(weight, bias, block_bytes=self._block_bytes)

    def ranked(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own logits."""
        return self.logits(hidden)

    def kept(self, top_k: int | None) -> int:
        """Bounded by the vocabulary."""
        return min(self._top_k if top_k is None else top_k, self.vocab_size)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own, cut to the vocabulary. Raises HostError on another shape."""
        logits = self._model_logits(hidden)
        if logits.ndim != 2 or logits.shape[0] != hidden.shape[0] or logits.shape[1] < self.vocab_size:
            expected = (hidden.shape[0], self.vocab_size)
            raise HostError(f"the model's logits have shape {tuple(logits.shape)}, not {expected}")
        return logits[:, : self.vocab_size].float()


def _check_shape(scale: float, soft_cap: float | None) -> tuple[float, float | None]:
    if not (math.isfinite(scale) and scale > 0):
        raise HostError(f"logit scale {scale} must be a finite number > 0")
    if soft_cap is not None and not (math.isfinite(soft_cap) and soft_cap > 0):
        raise HostError(f"soft cap {soft_cap} must be a finite number > 0, or None")
    return float(scale), None if soft_cap is None else float(soft_cap)

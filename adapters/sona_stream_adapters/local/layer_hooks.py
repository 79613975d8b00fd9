"""Adapters on the outputs of layers inside the model, row by row of a forward pass: research, by the setting
`litellm_params.layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sona_stream.errors import ModelUnavailable
from sona_stream_adapters.head import Factors

from .adapters import adapt

__all__ = ["LayerHooks", "Rows"]

Rows = Sequence[Factors | None]
"""the adapter of each row of a batch"""


class LayerHooks:
    """One forward hook a decoder layer, there from the start: which adapters act is said for each forward pass, in
    the thread that runs it. Nothing of an adapter outlives its pass but the keys and values of its own row.
    """

    def __init__(self, decoder: Any) -> None:
        """Raises ModelUnavailable where the decoder's layers cannot be found."""
        layers = next((found for name in ("layers", "h") if (found := getattr(decoder, name, None))), None)
        if layers is None:
            raise ModelUnavailable(
                f"litellm_params.layers: {type(decoder).__name__} keeps its layers neither as `layers` nor as `h`"
            )
        self.count = len(layers)
        self._rows: Rows = ()
        self._seen: dict[int, torch.Tensor] | None = None
        for index, layer in enumerate(layers):
            layer.register_forward_hook(self._hook_of(index))

    @contextmanager
    def using(self, rows: Rows) -> Iterator[None]:
        """Row i of the forward passes inside goes through the layers of ``rows[i]``."""
        active = any(entry is not None and entry.layers for entry in rows)
        self._rows = rows if active else ()
        try:
            yield
        finally:
            self._rows = ()

    @contextmanager
    def watching(self) -> Iterator[dict[int, torch.Tensor]]:
        """Layer -> its output (n, t, d) in the forward pass inside."""
        seen: dict[int, torch.Tensor] = {}
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def _hook_of(self, index: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            if self._seen is not None:
                self._seen[index] = output[0] if isinstance(output, tuple) else output
            if not self._rows:
                return None  # the output as it is
            hidden = output[0] if isinstance(output, tuple) else output
            mine = [None if entry is None else entry.layers.get(index) for entry in self._rows]
            adapted = adapt(hidden, mine)
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return hook

"""A model's files without the model: its lm_head in blocks of rows, and its fingerprint, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sona_stream.errors import ModelUnavailable

from ..local.fingerprint import model_fingerprint

__all__ = ["Checkpoint"]

_BLOCK = 8192
"""rows of lm_head read together"""


class Checkpoint:
    """A Hugging Face folder with safetensors. At most one tensor is in memory at a time.

    Names and shapes come from the architecture itself, built without storage: so tied embeddings, shards and heads
    by other names than ``lm_head`` need no rules here.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ModelUnavailable when the architecture is unknown, or has no head of its own in these files."""
        from transformers import AutoConfig, AutoModelForCausalLM

        self.folder = folder
        try:
            self.config: Any = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelUnavailable(f"the model in {folder} cannot be read: {error}") from error
        model.tie_weights()
        self._files = _files(folder)
        self._state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        head = model.get_output_embeddings()
        if head is None or getattr(head, "weight", None) is None:
            raise ModelUnavailable(f"{type(model).__name__} has no lm_head: an adapter cannot be written onto it")
        self.head_name = next(name for name, module in model.named_modules() if module is head)
        """as PEFT names it among its target modules"""
        self.has_head_bias = getattr(head, "bias", None) is not None
        self._head = self._stored(f"{self.head_name}.weight")

    @property
    def vocab_size(self) -> int:
        """V"""
        return int(self._state[f"{self.head_name}.weight"].shape[0])

    @property
    def hidden_dim(self) -> int:
        """D"""
        return int(self._state[f"{self.head_name}.weight"].shape[1])

    @property
    def is_tied(self) -> bool:
        """Whether the input embedding is the same tensor."""
        return sum(value is self._state[f"{self.head_name}.weight"] for value in self._state.values()) > 1

    def head_rows(self) -> Iterator[torch.Tensor]:
        """Blocks of W (n, d) in float32, from the first row of the vocabulary to the last."""
        with _reading(self._files[self._head]) as file:
            part = file.get_slice(self._head)
            if tuple(part.get_shape()) != (self.vocab_size, self.hidden_dim):
                raise ModelUnavailable(
                    f"{self._head} in {self.folder} has shape {tuple(part.get_shape())}, the config says "
                    f"{(self.vocab_size, self.hidden_dim)}"
                )
            for start in range(0, self.vocab_size, _BLOCK):
                rows: torch.Tensor = part[start : start + _BLOCK]
                if not rows.is_floating_point():
                    raise ModelUnavailable(
                        f"{self._head} in {self.folder} is quantised ({rows.dtype}): name the folder of the same "
                        "model before it was quantised"
                    )
                yield rows.float()

    def head_bias(self) -> torch.Tensor | None:
        """(V,) float32, of the few models that have one."""
        return self._tensor(self._stored(f"{self.head_name}.bias")).float() if self.has_head_bias else None

    def head_weight(self) -> torch.Tensor:
        """(V, d) in the dtype of the file."""
        return self._tensor(self._head)

    def norms(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The vectors that scale normalised states, by name."""
        for name, value in self._state.items():
            if value.ndim == 1 and "norm" in name:
                yield name, self._tensor(self._stored(name))

    def tokenizer(self) -> Any:
        """The folder's own. Raises ModelUnavailable."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelUnavailable(f"the tokenizer in {self.folder} cannot be loaded: {error}") from error

    def fingerprint(self) -> str:
        """As the local backend computes it from the loaded model."""
        tokenizer = self.tokenizer()
        if all(self._find(name) is not None for name in self._state):
            return model_fingerprint(self._parameters(), self.config, tokenizer)
        from ..local.model import load_model  # weights under other names, converted on the way in

        return load_model(self.folder, name=self.folder.name).fingerprint

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in sorted(self._state.items()):
            stored = self._tensor(self._stored(name))
            yield name, stored.float() if value.is_floating_point() else stored

    def _find(self, name: str) -> str | None:
        """The name in the files: its own, or one that it is tied to."""
        if name in self._files:
            return name
        wanted = self._state[name]
        return next((one for one, value in self._state.items() if value is wanted and one in self._files), None)

    def _stored(self, name: str) -> str:
        found = self._find(name)
        if found is None:
            raise ModelUnavailable(f"there is no {name} in the safetensors files of {self.folder}")
        return found

    def _tensor(self, name: str) -> torch.Tensor:
        with _reading(self._files[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in shards.items()}
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ModelUnavailable(f"{folder} has no model.safetensors: the weights are read from that format alone")
    with _reading(path) as file:
        return dict.fromkeys(file.keys(), path)


def _reading(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"{path} cannot be read: {error}") from error

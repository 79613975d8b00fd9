"""One tenant's logit bias as a safetensors file: token ids and what is added to their logits.

``<tenant, percent-quoted>.safetensors`` holds ``token_ids`` (n,) int32 and ``bias`` (n,) float32; its metadata say
what it is and whose. Written under a temporary name and renamed: readers see the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = [
    "FORMAT",
    "MAX_TENANT",
    "SUFFIX",
    "BadBias",
    "Limits",
    "TenantBias",
    "file_name",
    "read_bias",
    "write_bias",
]

FORMAT = "sona-logit-bias-1"
SUFFIX = ".safetensors"
MAX_TENANT = 256
"""characters of a tenant's name"""
_HEADER = 65_536  # bytes allowed beyond the numbers themselves


class BadBias(ValueError):
    """The file is not a bias that may be served; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a file may hold."""

    tokens: int = 4096
    bias: float = 20.0
    """largest absolute value of one entry, in natural log units"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TenantBias:
    """What is added to one tenant's logits."""

    tenant: str
    token_ids: NDArray[np.int32]
    """(n,) distinct, ascending"""
    bias: NDArray[np.float32]
    """(n,) finite"""
    vocab_size: int
    """of the model that it was made for"""
    source: str = ""
    """the adapter it was made from, ``key@version``"""


def file_name(tenant: str) -> str:
    """Any tenant's own, safe file name; a very long one ends in a hash. Raises BadBias for an impossible name."""
    if not 0 < len(tenant) <= MAX_TENANT:
        raise BadBias(f"a tenant's name must have 1 to {MAX_TENANT} characters, this one has {len(tenant)}")
    try:
        quoted = quote(tenant, safe=" ", errors="strict")
    except UnicodeEncodeError as error:
        raise BadBias("a tenant's name must be valid Unicode") from error
    if quoted.startswith("."):  # hidden files are not read
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) > 200:
        quoted = f"{quoted[:160]}~{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
    return quoted + SUFFIX


def write_bias(folder: Path, bias: TenantBias, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Put it in place of what the folder held of this tenant. Raises BadBias, OSError."""
    _check(bias, Limits(tokens=max(1, bias.vocab_size), bias=float("inf")))
    name = file_name(bias.tenant)
    words = {"format": FORMAT, "tenant": bias.tenant, "vocab_size": str(bias.vocab_size), "source": bias.source}
    data = save({"token_ids": bias.token_ids, "bias": bias.bias}, metadata={**(metadata or {}), **words})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    handle, temporary = tempfile.mkstemp(prefix=".", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a server under another account may read it
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            os.unlink(temporary)
        raise
    return path


def read_bias(path: Path, limits: Limits, *, vocab_size: int) -> TenantBias:
    """Raises BadBias for anything that may not be served on a model with `vocab_size` tokens, OSError.

    Read whole, not mapped: a file that somebody truncates under a mapping would end the process.
    """
    most = 8 * limits.tokens + _HEADER
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadBias(f"it is longer than the {most} bytes that {limits.tokens} tokens need")
    words, tensors = _parsed(data)
    if words.get("format") != FORMAT:
        raise BadBias(f"its metadata do not say format {FORMAT}")
    if sorted(tensors) != ["bias", "token_ids"]:
        raise BadBias(f"it holds {sorted(tensors)}, not bias and token_ids")
    size = words.get("vocab_size", "")
    if size != str(vocab_size):
        raise BadBias(f"it is for a vocabulary of {size[:20]!r} tokens, the model has {vocab_size}")
    tenant, source = words.get("tenant", ""), words.get("source", "")
    bias = TenantBias(tenant, tensors["token_ids"], tensors["bias"], vocab_size, source)
    _check(bias, limits)
    if file_name(bias.tenant) != path.name:
        raise BadBias(f"it is tenant {bias.tenant!r}'s and must be named {file_name(bias.tenant)}")
    return bias


def _parsed(data: bytes) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """(metadata, tensors) of a safetensors file."""
    try:
        tensors: dict[str, NDArray[Any]] = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadBias(f"it is not a safetensors file: {error}") from error
    return {str(name): str(value) for name, value in header.get("__metadata__", {}).items()}, tensors


def _check(bias: TenantBias, limits: Limits) -> None:
    """Shapes, types, ranges. Raises BadBias."""
    ids, values = bias.token_ids, bias.bias
    if ids.dtype != np.int32 or values.dtype != np.float32 or ids.ndim != 1 or ids.shape != values.shape:
        raise BadBias("token_ids must be (n,) int32 and bias (n,) float32")
    if not 0 < len(ids) <= limits.tokens:
        raise BadBias(f"{len(ids)} tokens; 1 to {limits.tokens} are allowed")
    if int(ids.min()) < 0 or int(ids.max()) >= bias.vocab_size:
        raise BadBias(f"token_ids must lie in 0 to {bias.vocab_size - 1}")
    if (np.diff(ids) <= 0).any():
        raise BadBias("token_ids must be distinct and ascending")
    if not np.isfinite(values).all() or float(np.abs(values).max()) > limits.bias:
        raise BadBias(f"bias must be finite numbers within +-{limits.bias:g}")

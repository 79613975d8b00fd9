"""One worker among the ranks of its engine. Tensor parallelism: hidden states are the same on every rank, each has
a shard of the vocabulary, and a call reaches all of them. Only the last pipeline rank has hidden states at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

__all__ = ["Ranks", "find_ranks"]


@dataclasses.dataclass(frozen=True, slots=True)
class Ranks:
    """Of one process."""

    tp_rank: int = 0
    tp_size: int = 1
    last_pp: bool = True
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
    gather: Callable[[dict[int, bytes]], list[dict[int, bytes]]] = lambda part: [part]


def find_ranks() -> Ranks:
    """As vLLM set them up."""
    from vllm.distributed import get_pp_group, get_tp_group

    tp, last = get_tp_group(), bool(get_pp_group().is_last_rank)
    if tp.world_size == 1:
        return Ranks(last_pp=last)
    from vllm.distributed import tensor_model_parallel_all_reduce

    def gather(part: dict[int, bytes]) -> list[dict[int, bytes]]:
        parts: list[dict[int, bytes]] = [{} for _ in range(tp.world_size)]
        torch.distributed.all_gather_object(parts, part, group=tp.cpu_group)
        return parts

    return Ranks(tp.rank_in_group, tp.world_size, last, tensor_model_parallel_all_reduce, gather)

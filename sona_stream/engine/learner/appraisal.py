"""What the lessons of a key say by now. With a full book that takes tens of milliseconds of numpy: on a thread, for
answers stream from this event loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from .evidence import Evidence, dependence
from .keys import EVERYTHING, AdapterKey
from .lessons import Lesson
from .optimiser import RIDGE
from .standing import FEWEST, foretold
from .state import State

__all__ = ["evidence_of", "stands"]


async def evidence_of(state: State, key: AdapterKey, lessons: Sequence[Lesson]) -> Evidence:
    """What the ratings among these lessons say."""
    root, metric = key.at(EVERYTHING), (await state.curvature(key, lessons)).outputs
    state.measurements.keep(root, {one.answer for one in await state.book(key)})
    judged, values, rows = state.measurements.judged(root, lessons, state.settings.baseline_shrinkage)
    tokens = [one.capture.token_ids for one in judged]
    corrections = sum(one.quality is None for one in lessons)
    z = await anyio.to_thread.run_sync(dependence, values, rows, tokens, metric, RIDGE)
    return Evidence(z, float(len(lessons) - corrections), float(corrections))


async def stands(state: State, key: AdapterKey, lessons: Sequence[Lesson]) -> bool:
    """Whether the key's own lessons tell more of it than those of every coarser level (see `standing`)."""
    groups, root, shrinkage = lessons[-1].groups, key.at(EVERYTHING), state.settings.baseline_shrinkage
    book, metric = await state.book(key), (await state.metric(key, lessons[-1])).outputs
    for group in groups[: groups.index(key.group)]:
        judged, values, rows = state.measurements.judged(root, book.of(key.at(group)), shrinkage)
        own = [key.group in one.groups for one in judged]
        if sum(own) >= FEWEST:
            by_own, by_all = await anyio.to_thread.run_sync(foretold, values, rows, own, metric, RIDGE)
            if by_all >= by_own:
                return False
    return True

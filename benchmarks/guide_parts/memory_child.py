"""What a process grows by. Run by `memory.py` in a process of its own; prints one JSON line.

memory_child.py edge N       an edge engine, N trajectories, one cycle
memory_child.py research N   bytes a trajectory, N of them
memory_child.py patterns N   bytes a pattern, N of them
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

_SMAPS = Path("/proc/self/smaps_rollup")


def resident() -> int:
    """Bytes of this process in memory, exact (the counters of ``statm`` lag behind).

    What the allocator holds free is given back first: else growth could hide in what the imports left over.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        trim(0)
    line = next(line for line in _SMAPS.read_text().splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) * 1024


def main(mode: str, n: int) -> None:
    """Measures before, between and after."""
    bare = resident()
    import dataclasses

    import numpy as np

    from guide_parts.inputs import DIM, clustered, record, trained, units
    from sona_stream.engine import SonaConfig, SonaEngine

    random = np.random.default_rng(1)

    def warm_up() -> None:
        """Kernels are loaded and every path has run once."""
        engine = trained(SonaConfig(hidden_dim=64, warn=False))
        engine.find_patterns(np.ones(64, np.float32), 3)
        engine.apply_micro_lora(np.ones((4, 64), np.float32))
        engine.apply_base_lora(0, np.ones(64, np.float32))
        engine.force_learn()

    centre = units(1, DIM, random)

    def fill(engine: SonaEngine, count: int, chunk: int = 100) -> None:
        """Queries of one pattern, or each of a pattern of its own."""
        for first in range(0, count, chunk):
            rows = units(chunk, DIM, random)
            queries = rows if mode == "patterns" else clustered(chunk, centre, 0.3, random)
            for i in range(min(chunk, count - first)):
                record(engine, queries[i], rows[i], quality=0.8)

    profile = SonaConfig.edge(DIM) if mode == "edge" else SonaConfig.research(DIM)
    if mode == "patterns":
        profile = dataclasses.replace(profile, pattern_clusters=n, trajectory_capacity=1, warn=False)
    else:
        profile = dataclasses.replace(profile, trajectory_capacity=n, warn=False)
    warm_up()
    before = resident()
    engine = SonaEngine.with_config(profile)
    fill(engine, 1)
    engine.apply_micro_lora(np.ones(DIM, np.float32))
    empty = resident()
    fill(engine, n)
    full = resident()
    stored = int(engine.get_stats()["patterns_stored"])
    if mode == "edge":
        engine.force_learn()
    after = resident()
    print(
        json.dumps(
            {
                "imports": before - bare,
                "growth": max(full, after) - before,
                "each": (full - empty) / n,
                "patterns": stored,
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(sys.argv[1], int(sys.argv[2]))

"""A plug-in of another party, by vLLM's own door: the hook is slow while one file exists, and raises once another
does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NAME = "meddler"
STEP_S = 0.1
_CODE = f"""
import os
import time

def register():
    from sona_stream_adapters.vllm_plugin.plan import Planner

    whole = Planner.plan
    if whole.__name__ == "meddled":
        return

    def meddled(self, *args, **kwargs):
        if os.path.exists(os.environ.get("BREAK_HOOK", "")):
            raise RuntimeError("forced by the test")
        if os.path.exists(os.environ.get("SLOW_HOOK", "")):
            time.sleep({STEP_S})
        return whole(self, *args, **kwargs)

    Planner.plan = meddled
"""


class HookMeddler:
    """Installed in ``folder``; an engine has it that is started with `environment` and `NAME` in VLLM_PLUGINS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken = folder / "broken"
        """Once it exists, the hook raises."""
        self._slow = folder / "slow"
        (folder / f"{NAME}.py").write_text(_CODE)
        facts = folder / f"{NAME}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n")

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, "BREAK_HOOK": str(self.broken), "SLOW_HOOK": str(self._slow)}

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """A step of the model takes `STEP_S` at least: hundreds of tokens are under way for tens of seconds,
        however small the model and slow the reader.
        """
        self._slow.touch()
        try:
            yield
        finally:
            self._slow.unlink()

"""A plug-in as if its package were installed, for the examples that define one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["installed"]


@contextmanager
def installed(group: str, name: str, target: str) -> Iterator[str]:
    """Yields a folder for the import path with the two files that pip would write for a package whose pyproject
    says ``[project.entry-points."GROUP"]  NAME = "TARGET"``; the target is ``module:function``.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "own_plugin-1.0.dist-info")
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugin\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
        yield folder

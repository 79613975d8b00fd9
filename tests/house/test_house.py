"""What holds of the whole house: what importing costs, what is shipped, what is where."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import sona_stream
import sona_stream_adapters

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "sona_stream", ROOT / "adapters" / "sona_stream_adapters")
HEAVY = ("numba", "torch", "transformers", "uvicorn", "httpx", "onnxruntime", "openai")
COMMANDS = (
    "adapters", "bench", "capacity", "chat", "export", "freeze", "keys", "memory", "models", "route", "serve",
    "state", "thaw",
)  # fmt: skip


def _loaded_by(code: str) -> tuple[set[str], float]:
    """(heavy modules, milliseconds) of running this in a fresh interpreter."""
    program = (
        "import sys, time; began = time.perf_counter()\n"
        f"{code}\n"
        "took = time.perf_counter() - began\n"
        "print(took * 1e3, *(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    took, *names = ran.stderr.splitlines()[-1].split()
    return set(names) & set(HEAVY), float(took)


def test_importing_loads_nothing_heavy_and_is_quick():
    times = []
    for _ in range(3):
        heavy, took = _loaded_by("import sona_stream")
        assert heavy == set()
        times.append(took)
    assert min(times) < 300, times  # 150 ms is the aim on a quiet machine


def test_help_of_every_command_loads_nothing_heavy():
    code = (
        "from sona_stream.cli import main\n"
        f"for words in ([], *([name] for name in {COMMANDS!r}), ['state', 'verify'], ['keys', 'hash']):\n"
        "    main([*words, '--help'], standalone_mode=False)"
    )
    heavy, _ = _loaded_by(code)
    assert heavy == set()


def test_every_command_is_listed_and_can_be_loaded():
    from sona_stream.cli import main

    assert tuple(main.list_commands(None)) == COMMANDS
    for name in COMMANDS:
        command = main.get_command(None, name)
        assert command is not None
        assert command.name == name
        assert command.help


@pytest.mark.parametrize("group", ["backends", "embedders", "exporters", "models", "scorers", "stores"])
def test_every_entry_point_can_be_loaded(group):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = {point.name: point for point in entry_points(group=f"sona_stream.{group}")}
    assert set(ours[f"sona_stream.{group}"]) <= set(found)
    for name in ours[f"sona_stream.{group}"]:
        assert callable(found[name].load()), name


def _modules() -> list[str]:
    packages = (sona_stream, sona_stream_adapters)
    names = [
        info.name for one in packages for info in pkgutil.walk_packages(one.__path__, prefix=f"{one.__name__}.")
    ]
    return sorted({name for name in names if not name.endswith("__main__")} | {one.__name__ for one in packages})


@pytest.mark.parametrize("name", _modules())
def test_all_says_what_is_there(name):
    module = importlib.import_module(name)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    # What a decorator takes (a command of a group) is reached through it.
    own = {node.name for node in body if isinstance(node, kinds) and not _is_command(node)}
    public = {one for one in own if not one.startswith("_")} - {"main"}
    told = getattr(module, "__all__", [])
    assert public <= set(told)
    assert len(set(told)) == len(told)
    assert [one for one in told if not hasattr(module, one)] == []


def _is_command(node: ast.AST) -> bool:
    return any("command" in ast.unparse(one) for one in getattr(node, "decorator_list", []))


def test_types_are_shipped():
    for source in SOURCES:
        assert (source / "py.typed").is_file()


def test_no_drawer_for_everything_and_no_long_module():
    for path in (path for source in SOURCES for path in source.rglob("*.py")):
        assert path.stem not in ("utils", "util", "helpers", "common", "base", "manager", "misc"), path
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 350, f"{path} has {lines} lines"


def test_the_floors_hold():
    ran = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "0 broken" in ran.stdout

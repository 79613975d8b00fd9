from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import forked
import pytest
from program import QUICK, Client, Program, write_config
from tiny_model import save_tiny_model

from sona_stream.config.load import hash_key
from sona_stream.errors import ModelUnavailable

TENANTS = 64
SLOW = ("e2e", "vllm_host", "local", "examples", "cli", "benchmarks", "learner", "peft", "engine", "capacity")
"""Rooms of tests whose files take seconds each."""

# The models are tiny and servers are processes beside this one. Torch reads it when it is imported, later.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# tests/vllm runs in a virtual environment of its own, see .ci/vllm-env.
collect_ignore = [] if find_spec("vllm") else ["vllm"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite takes two processes; a part of it, or one with a debugger, stays in one."""
    if hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # this is one of the two
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and getattr(option, "numprocesses", 0) is None and not option.usepdb and option.capture != "no":
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadfile", False


def pytest_unconfigure(config: pytest.Config) -> None:
    forked.stop()


def _slow_rooms_first(item: pytest.Item) -> int:
    room = item.path.parent.name
    return SLOW.index(room) if room in SLOW else len(SLOW)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=_slow_rooms_first)  # so that none of the two waits long for the other in the end
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run it with --slow"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=4096)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``serve(*arguments, state=...)`` starts a server; whatever still runs in the end is killed."""
    started: list[Program] = []

    def start(*arguments: str, state: Path | None = None, **options) -> Program:
        log = tmp_path / f"server{len(started)}.log"
        program = Program(list(arguments), state or tmp_path / "state", log, **{"forked": True, **options})
        started.append(program)
        return program

    yield start
    for program in started:
        if program.process.poll() is None:
            program.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def shared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One server for many tests. Its keys: ``key<i>`` with all roles and a tenant of its own; ``user``,
    ``teacher``, ``admin`` and ``gateway`` (which names end users), all of the tenant ``roles``.
    """
    folder = tmp_path_factory.mktemp("shared")
    everything = ["use", "teach", "admin"]
    keys = [{"key": hash_key(f"key{i}"), "tenant": f"t{i}", "roles": everything} for i in range(TENANTS)]
    for name, roles in (("user", ["use"]), ("teacher", ["use", "teach"]), ("admin", ["admin"])):
        keys.append({"key": hash_key(name), "tenant": "roles", "roles": roles})
    gateway = {"key": hash_key("gateway"), "tenant": "roles", "roles": everything, "trusted_gateway": True}
    metrics = {
        "stars": {"min": 1, "max": 5},
        "seconds": {"min": 0, "max": 10, "direction": "lower_is_better"},
    }
    sona = {"keys": [*keys, gateway], "metrics": metrics, **QUICK}
    config = write_config(folder / "config.yaml", tiny_folder, sona)
    program = Program(["--config", str(config)], folder / "state", folder / "server.log", forked=True)
    yield program
    assert program.stop() == 0, program.log
    assert "Traceback" not in program.log


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The folder of the real encoder that tells paraphrases apart (extra `memory`)."""
    from sona_stream_adapters.embedders.onnx import pull_encoder

    try:
        return pull_encoder("all-minilm-l6-v2")
    except ModelUnavailable as error:
        pytest.skip(f"the encoder cannot be had: {error}")


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """`sona-stream serve` with no options, as the README starts it: SmolLM2, which takes seconds to load."""
    from sona_stream_adapters.local import pull_model

    try:
        pull_model("smollm2-135m-instruct")
    except ModelUnavailable as error:
        pytest.skip(f"the model cannot be had: {error}")
    folder = tmp_path_factory.mktemp("default")
    program = Program([], folder / "state", folder / "server.log")
    yield program
    assert program.stop() == 0, program.log
    assert "Traceback" not in program.log


_tenants = itertools.count()


@pytest.fixture
def tenant(shared: Program) -> Client:
    """Somebody with all roles whose tenant was taught nothing yet."""
    return shared.client(f"key{next(_tenants)}")

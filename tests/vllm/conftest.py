"""Tests inside vLLM's own virtual environment: a real engine, in this process, on a tiny model in float32.

``pytest tests/vllm`` runs the V1 runner; ``--runner v2`` the second one through Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ |= {
    "SONA_VLLM": "1",
    "SONA_VLLM_KEY": "tests",
    "VLLM_PLUGINS": "sona",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
}

RUNNERS = ("v1", "v2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runner", choices=RUNNERS, default="v1", help="vLLM's model runner")
    parser.addoption("--no-skips", action="store_true", help="a test that skips itself has failed")
    parser.addoption("--compiled", action="store_true", help="the engine with torch.compile, not eager")


def pytest_configure(config: pytest.Config) -> None:
    # The engine and its libraries warn of much that is theirs.
    config.addinivalue_line("filterwarnings", "ignore")
    if config.getoption("--runner") == "v2":
        from triton_interpreter import interpret_on_cpu

        interpret_on_cpu()
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if item.config.getoption("--no-skips") and report.skipped and not item.get_closest_marker("slow"):
        report.outcome, report.longrepr = "failed", f"skipped, which --no-skips forbids: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import save_tiny_model

    return save_tiny_model(
        tmp_path_factory.mktemp("tiny"),
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )


@pytest.fixture(scope="session")
def engine(model_folder: Path, request: pytest.FixtureRequest) -> Iterator[object]:
    """Eager, with a budget of 64 tokens a step, so that longer prompts are read in chunks."""
    from engine import Engine

    made = Engine(
        model_folder,
        enforce_eager=not request.config.getoption("--compiled"),
        max_num_batched_tokens=64,
        enable_chunked_prefill=True,
    )
    assert made.info["runner"] == request.config.getoption("--runner")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the shared engine begins without adapters, and none may leave the hook disabled."""
    yield
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")
        for row in engine.call("adapters")["adapters"]:
            engine.call("drop", row["key"])
        stats = engine.call("stats")
        assert stats["disabled"] == ""
        assert stats["mismatch"] == 0


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> object:
    from engine import Reference

    return Reference(model_folder)

"""A start that is given up: in the middle of its imports, and while it waits for its processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from sona_stream_adapters.vllm.engine_start import EngineStart

psutil = pytest.importorskip("psutil")


class Made:
    stopped = False

    def stop(self):
        self.stopped = True


async def given_up(make, begun):
    """How long `run` took to come back after the stop; it must have made nothing."""
    stopping = asyncio.Event()
    running = asyncio.create_task(EngineStart(make, stopping).run())
    await asyncio.to_thread(begun.wait, 10)
    at = time.monotonic()
    stopping.set()
    assert await running is None
    return time.monotonic() - at


async def test_one_that_is_not_stopped_is_made():
    made = Made()
    assert await EngineStart(lambda: made, asyncio.Event()).run() is made

    def fails():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        await EngineStart(fails, asyncio.Event()).run()


async def test_imports_end(tmp_path, monkeypatch):
    """Each of a hundred modules takes a moment, and they catch what they can."""
    for i in range(100):
        (tmp_path / f"slow_{i}.py").write_text(
            f"import time\ntime.sleep(0.1)\ntry:\n    import slow_{i + 1}\nexcept Exception:\n    pass\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    begun, finders = threading.Event(), list(sys.meta_path)

    def make():
        begun.set()
        __import__("slow_0")
        return Made()

    assert await given_up(make, begun) < 3
    assert sys.meta_path == finders


@pytest.mark.parametrize("deaf", [False, True])
async def test_processes_are_ended_one_after_the_other(deaf):
    """As often as another one is waited for; one that does not hear is killed. Those from before are left alone."""
    command = "import signal, time\n"
    command += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    command += "print(1, flush=True)\ntime.sleep(60)"
    before = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # noqa: ASYNC220
    others = {child.pid for child in psutil.Process().children()}  # servers that tests share are among them
    begun, ended = threading.Event(), []

    def make():
        for _ in range(1 if deaf else 2):
            with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) as child:
                child.stdout.readline()
                begun.set()
                ended.append(child.wait())
        raise RuntimeError("the engine's processes have died")

    try:
        assert await given_up(make, begun) < 8
        assert len(ended) == (1 if deaf else 2)
        assert before.poll() is None
        assert {child.pid for child in psutil.Process().children()} == others
    finally:
        before.kill()
        before.wait()


async def test_one_that_came_too_late_is_stopped_again():
    begun, made = threading.Event(), Made()

    def make():
        begun.set()
        time.sleep(0.5)
        return made

    assert await given_up(make, begun) < 3
    assert made.stopped

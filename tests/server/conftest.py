import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # server_fakes and server_clients are this room's tests' own

from server_fakes import FakeServices

from sona_stream.server import create_app, run


@pytest.fixture
def services():
    return FakeServices()


@pytest.fixture
def app(services):
    return create_app(services)


@pytest.fixture
def listening():
    """``async with listening(app) as url``: the application on a real socket, stopped with a short grace."""

    @contextlib.asynccontextmanager
    async def listen(app, grace=0.2):
        announced = asyncio.Queue()
        with run._bound("127.0.0.1", 0) as sock:
            url = run._url("127.0.0.1", sock)
            server = run._Server(app, grace)
            ready = asyncio.create_task(run._announce(app, server, url, announced.put_nowait))
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            try:
                await asyncio.wait_for(announced.get(), 5)
                yield url
            finally:
                server._stop()
                await asyncio.wait_for(serving, 10)
                ready.cancel()
                await asyncio.gather(ready, return_exceptions=True)

    return listen

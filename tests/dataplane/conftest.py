"""The whole program in this process, on real sockets: a scripted upstream, uvicorn, a client by hand."""

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # dataplane_scripts
sys.path.insert(0, str(Path(__file__).parent.parent / "transport"))  # for scripted_upstream
sys.path.insert(0, str(Path(__file__).parent.parent / "server"))  # for server_clients

from sona_stream.app import Application
from sona_stream.config.load import settings_for_upstream
from sona_stream.config.settings import SonaSettings
from sona_stream.server import create_app, run


class Proxy:
    def __init__(self, url, application, app):
        self.url, self.application, self.app = url, application, app


@pytest.fixture
def proxy(tmp_path):
    """``async with proxy(settings or upstream's URL) as it``: `sona-stream serve` without its process."""

    @contextlib.asynccontextmanager
    async def start(settings):
        if isinstance(settings, str):
            settings = settings_for_upstream(settings, sona=SonaSettings(storage="none", learning="off"))
        application = Application(settings, directory=tmp_path / "state")
        app = create_app(application)
        announced = asyncio.Queue()
        with run._bound("127.0.0.1", 0) as sock:
            url = run._url("127.0.0.1", sock)
            server = run._Server(app, 0.2)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            ready = asyncio.create_task(run._announce(app, server, url, announced.put_nowait))
            try:
                for _ in range(2):  # listening, ready
                    await asyncio.wait_for(announced.get(), 20)
                yield Proxy(url, application, app)
            finally:
                server._stop()
                await asyncio.wait_for(serving, 10)
                ready.cancel()
                await asyncio.gather(ready, return_exceptions=True)

    return start

"""Runs the application on uvicorn until a signal comes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn

from ..config.load import check_bind
from ..errors import ConfigError, NotReady, SonaError
from .asgi import App
from .protocol import BoundedProtocol
from .responses import Receive, Send

__all__ = ["serve"]

_log = logging.getLogger(__name__)

BACKLOG = 4096
GRACE_S = 30.0
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that they close them, not we under a request."""
_BACKSTOP_S = 10
"""After the grace and this, even an answer that ignores its cancellation is waited for no longer."""
_PROBE_S = 0.1
_GC_THRESHOLD = (20_000, 20, 20)


def serve(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    grace: float = GRACE_S,
    announce: Callable[[str], None] = print,
) -> None:
    """Blocks until SIGINT or SIGTERM, then returns: no new connections, ``grace`` seconds for the answers that run,
    then they are cancelled, the services stopped. A second signal ends the grace.

    ``announce`` is told ``listening on URL`` at once and ``ready on URL`` when a model answers. Port 0 takes a free
    one. Raises `ConfigError` when the address cannot be had, whatever ended the start, and what says that no model
    will ever answer.
    """
    check_bind(app.services.settings, host)
    with _bound(host, port) as sock:
        server = _Server(app, grace)
        # uvloop where it is installed.
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(app, server, sock, _url(host, sock), announce))


async def _serve(app: App, server: _Server, sock: socket.socket, url: str, announce: Callable[[str], None]) -> None:
    def told(line: str) -> None:
        announce(line)
        if line.startswith("ready"):
            _settle_memory()

    ready = asyncio.create_task(_announce(app, server, url, told))
    try:
        with server.stopped_by_signals():
            await server.serve(sockets=[sock])
    except SystemExit:
        # uvicorn's way to say that the lifespan did not start.
        raise app.startup_error or SonaError("the server did not start") from None
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
    if server.lost is not None:
        raise server.lost


def _settle_memory() -> None:
    """What was loaded by now stays for good: the collector need not walk it again with every few requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)


async def _announce(app: App, server: _Server, url: str, announce: Callable[[str], None]) -> None:
    await server.up.wait()
    announce(f"listening on {url}")
    told = ""
    while True:
        try:
            await app.services.readiness()
        except NotReady as error:
            if str(error) != told:
                told = str(error)
                _log.info("not ready yet: %s", told)
            await asyncio.sleep(_PROBE_S)
        except SonaError as error:
            server.give_up(error)
            return
        except Exception:
            _log.exception("whether a model answers cannot be told")
            return
        else:
            announce(f"ready on {url}")
            return


class _Server(uvicorn.Server):
    """uvicorn with our own signals: it would end the process by the signal again, with that exit code."""

    def __init__(self, app: App, grace: float) -> None:
        async def quiet(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                # Its client has been told; past the grace nobody waits for this task.
                if not self.should_exit:
                    raise

        config = uvicorn.Config(
            quiet,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(grace) + _BACKSTOP_S,
        )
        super().__init__(config)
        self.up = asyncio.Event()
        """Set once connections are accepted."""
        self.lost: SonaError | None = None
        """Why there is no use in going on."""
        self._grace = grace
        self._cut: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also sets `up`."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None here: `stopped_by_signals` stands in for uvicorn's own."""
        yield

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Around the whole run, the start included."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals go to the main thread; they are handled there
            return
        loop = asyncio.get_running_loop()
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not `loop.add_signal_handler`: that one is missing on Windows.
            before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._stop))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def give_up(self, error: SonaError) -> None:
        """Stop, because of this."""
        self.lost = error
        self._stop()

    def _stop(self) -> None:
        if self.should_exit:
            self._cut_off()
            return
        self.should_exit = True
        if self.server_state.tasks:
            _log.info("answers may go on for %g s; a second signal ends them at once", self._grace)
        self._cut = asyncio.get_running_loop().call_later(self._grace, self._cut_off)

    def _cut_off(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
        for task in tuple(self.server_state.tasks):
            task.cancel("the server is shutting down")


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket. Raises `ConfigError` that says what is wrong with the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host.strip("[]"), port))
        except OSError as error:
            raise ConfigError(_why_not(host, port, error)) from error
        sock.setblocking(False)
        yield sock
    finally:
        sock.close()


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program: stop it, or choose another --port (0: any)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights: choose a --port above 1023"
    return f"cannot bind to {host}, port {port}: {error.strerror or error}"


def _url(host: str, sock: socket.socket) -> str:
    port = sock.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"http://{shown}:{port}"

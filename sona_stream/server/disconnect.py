"""One watcher a request: a client that leaves cancels what is done for it, at once and in every phase."""

from __future__ import annotations

import asyncio
from types import TracebackType

from .responses import Receive

__all__ = ["ClientWatch"]


class ClientWatch:
    """``with ClientWatch(receive) as watch:`` cancels the block when the client disconnects, and swallows that.

    Only its own cancellation: another one, such as the server's shutdown, passes. After `answered` a client may
    leave without any effect. Read the body before: the watcher takes all further messages.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._open = True
        self.left = False

    def __enter__(self) -> ClientWatch:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("ClientWatch needs a running task")
        self._task = task
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._open = False
        self._watcher.cancel()
        if not self.left:
            return False
        others = self._task.uncancel()
        return isinstance(error, asyncio.CancelledError) and others == 0

    def answered(self) -> None:
        """The last byte is decided: the client may go."""
        self._open = False

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._open:
            self.left = True
            self._task.cancel("the client disconnected")

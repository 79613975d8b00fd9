"""A whole program for the runner's tests: ``python served_program.py LOG MODE [PORT]``."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from server_fakes import HEAD, FakeServices, forever

from sona_stream.errors import NotReady, SonaError, StateError
from sona_stream.events import Delta, Finish, Piece
from sona_stream.server import create_app
from sona_stream.server.run import serve


class Services(FakeServices):
    def __init__(self, log, *steps):
        super().__init__(*steps)
        self.path = Path(log)

    def note(self, what):
        with self.path.open("a") as file:
            file.write(what + "\n")

    async def startup(self):
        self.note("startup")
        await super().startup()

    async def shutdown(self):
        await asyncio.sleep(0.05)
        self.note(f"shutdown after {self.pipeline.ended}")


def main():
    log, mode = sys.argv[1:3]
    port = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    a_while = {"short": lambda: asyncio.sleep(0.6)}.get(mode, forever)
    services = Services(log, HEAD, Delta(pieces=(Piece(text="a"),)), a_while, Finish())
    if mode == "loading":
        services.not_ready = NotReady("the model loads")
    if mode == "broken":
        services.start_error = StateError("the state folder is held by another process")
    try:
        serve(
            create_app(services),
            port=port,
            grace=9.0 if mode in ("short", "stubborn") else 0.2,
            announce=lambda line: print(line, flush=True),
        )
    except SonaError as error:
        sys.exit(f"error: {error}")


main()

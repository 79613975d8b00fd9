"""An own backend, complete, as a third party would ship it, behind the real server: python examples/own_backend.py

A backend is a `Handler` with a lifetime: a `Request` goes down; `Head`, `Delta`s and `Finish` come up. Its package
names it in the entry points of `sona_stream.backends`; from then on that name is a provider in `model_list`.
"""

import asyncio
import json
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from installed import installed
from served import served

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import InvalidRequest, NotFound
from sona_stream.events import Delta, Event, Finish, Head, Headers, Piece, Request, Usage


class ReversingBackend:
    """Answers with the words of the question from last to first."""

    adaptable = False
    host = None

    def __init__(self, deployment: Deployment) -> None:
        self.name = deployment.model_name
        self._pause_s = float(deployment.params.get("pause_s", 0.0))

    async def __aenter__(self) -> "ReversingBackend":
        return self  # connections would be opened here

    async def __aexit__(self, *exc: object) -> None: ...

    async def probe(self) -> None:
        """Returns when the model would answer: at once."""

    async def embeddings(self, body: bytes, headers: Headers = ()) -> tuple[int, Headers, bytes]:
        raise NotFound(f"{self.name} has no embeddings")

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
        async with aclosing(self._answer(request)) as events:
            yield events  # when the client leaves, so does this block

    async def _answer(self, request: Request) -> AsyncGenerator[Event, None]:
        for field, said in request.objections:  # whoever passes the body on leaves them to the upstream
            raise InvalidRequest(said, param=field)
        yield Head(model=self.name)
        words = request.query.split()[::-1]
        for word in words:
            await asyncio.sleep(self._pause_s)
            yield Delta(pieces=(Piece(text=word + " "),))
        yield Delta(pieces=(Piece(finish_reason="stop"),))
        yield Finish(reason="stop", usage=Usage(prompt_tokens=len(words), completion_tokens=len(words)))


def create_backend(deployment: Deployment, settings: SonaSettings) -> ReversingBackend:
    return ReversingBackend(deployment)


CONFIG = """
model_list:
  - model_name: mirror
    litellm_params: {model: reversing/words, pause_s: 0.01}
"""


def main() -> None:
    package = installed("sona_stream.backends", "reversing", "own_backend:create_backend")
    with package as folder, served(CONFIG, folder) as url:
        body = {"model": "mirror", "messages": [{"role": "user", "content": "words these say and stream"}]}
        with urllib.request.urlopen(f"{url}/v1/chat/completions", json.dumps(body).encode(), timeout=30) as answer:
            said = json.load(answer)
            print(answer.headers["x-sona-model"], "says:", said["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()

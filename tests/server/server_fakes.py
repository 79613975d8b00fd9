"""A program without rooms behind it: scripted answers, a store in memory, feedback that is written down."""

import asyncio
import contextlib
import inspect

from prometheus_client import CollectorRegistry

from sona_stream.config.settings import Deployment, Settings, SonaSettings
from sona_stream.errors import FeedbackConflict, NotFound
from sona_stream.events import (
    AdapterRef,
    Delta,
    FeedbackOutcome,
    Finish,
    Head,
    Piece,
    RouteDecision,
    Trajectory,
    Usage,
)

ROUTE = RouteDecision(
    model="m1", reason="pattern", pattern="p7", pattern_type="CodeGen", similarity=0.875, propensity=0.25
)
HEAD = Head(model="m1", route=ROUTE, adapter=AdapterRef(key="m1/default/CodeGen", version=3))


USAGE = Usage(prompt_tokens=4, completion_tokens=2)


def spoken(*words):
    """An answer in pieces, as a model in this process gives it."""
    return [HEAD, *(Delta(pieces=(Piece(text=word),)) for word in words), Finish(reason="stop", usage=USAGE)]


class Script:
    """A `Handler` that plays events; an exception is raised, an awaitable-maker awaited."""

    def __init__(self, *steps, on_exit=None):
        self.steps, self.on_exit = steps, on_exit
        self.requests = []
        self.ended = []
        self.entered = asyncio.Event()
        self.exited = asyncio.Event()

    @contextlib.asynccontextmanager
    async def __call__(self, request):
        self.requests.append(request)
        self.entered.set()
        how = "complete"
        try:
            async with contextlib.aclosing(self._play()) as events:
                yield events
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            if self.on_exit is not None:
                await self.on_exit()
            self.ended.append(how)
            self.exited.set()

    async def _play(self):
        for step in self.steps:
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                waited = step()
                if inspect.isawaitable(waited):
                    await waited
                continue
            yield step


async def forever():
    await asyncio.Event().wait()


class FakeStore:
    def __init__(self):
        self.rows = {}
        self.committed = []
        self.outcomes = {}

    def add(self, request_id, *, tenant="default", names=(), user=None):
        trajectory = Trajectory(request_id=request_id, tenant=tenant, key_id="k", user=user)
        self.rows[request_id] = (trajectory, {request_id, *names})

    async def find_requests(self, any_id, *, tenant):
        return [i for i, (row, names) in self.rows.items() if row.tenant == tenant and any_id in names]

    async def trajectory(self, request_id, *, tenant=None):
        row = self.rows.get(request_id)
        return row[0] if row and tenant in (None, row[0].tenant) else None

    async def commit_feedback(self, feedback):
        for old in self.committed:
            if feedback.idempotency_key and (old.tenant, old.idempotency_key) == (
                feedback.tenant,
                feedback.idempotency_key,
            ):
                if (old.request_id, old.quality, old.correction) != (
                    feedback.request_id,
                    feedback.quality,
                    feedback.correction,
                ):
                    raise FeedbackConflict("this idempotency key was used before for other content")
                return old
        self.committed.append(feedback)
        return feedback

    async def outcome(self, feedback_id):
        return self.outcomes.get(feedback_id)


class FakeFeedback:
    def __init__(self, store):
        self.store = store
        self.learned = []
        self.answer = None
        self.error = None

    async def learn(self, feedback, *, wait=False):
        assert feedback in self.store.committed, "learned from before it was durable"
        self.learned.append((feedback, wait))
        if self.error is not None:
            raise self.error
        if self.answer is not None and wait:
            return self.answer(feedback)
        return FeedbackOutcome(feedback_id=feedback.id, status="queued")


class FakeServices:
    def __init__(self, *steps, sona=None, models=("m1", "m2")):
        entries = tuple(Deployment(model_name=name, provider="openai", upstream_model=name) for name in models)
        self.settings = Settings(models=entries, sona=sona or SonaSettings())
        self.registry, self.live = CollectorRegistry(auto_describe=True), ()
        self.pipeline = Script(*(steps or spoken("Hello", " world")))
        self.store = FakeStore()
        self.feedback = FakeFeedback(self.store)
        self.log = []
        self.not_ready = None
        self.start_error = None
        self.pinned = []
        self.embedding = None

    async def startup(self):
        if self.start_error is not None:
            raise self.start_error
        self.log.append("startup")

    async def shutdown(self):
        self.log.append("shutdown")

    async def readiness(self):
        if self.not_ready is not None:
            raise self.not_ready

    async def models(self):
        names = dict.fromkeys(entry.model_name for entry in self.settings.models)
        return tuple(name for name in names if name != "*")

    async def embeddings(self, model, body, headers=()):
        if model != "m1":
            raise NotFound(f"the model {model!r} does not exist")
        if self.embedding is not None:
            await self.embedding()
        return 200, ((b"content-type", b"application/json"), (b"x-upstream", b"1"), (b"content-length", b"9")), body

    async def pin(self, adapter):
        if adapter.version > 5:
            raise NotFound(f"there is no adapter {adapter}")
        self.pinned.append(adapter)

    async def stats(self):
        return {"trajectories": 7, "quality": float("nan")}

    async def patterns(self):
        return [{"id": "p7"}]

    async def adapters(self, tenant=None):
        return [{"key": f"m1/{tenant or 'default'}/CodeGen", "version": 3, "current": True}]

    async def rollback(self, key, version):
        if key != "m1/default/CodeGen":
            raise NotFound(f"there is no adapter {key}")
        self.log.append(("rollback", key, version))
        return {"key": key, "version": version}

    async def freeze(self):
        self.log.append("freeze")
        return {"frozen": True}

    async def thaw(self):
        self.log.append("thaw")
        return {"frozen": False}

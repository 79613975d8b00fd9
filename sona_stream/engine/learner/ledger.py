"""What is counted for one model and tenant, durable as one small JSON blob beside the weights."""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ...protocols import Store
from ...storing import CaptureHead
from .baseline import Baseline
from .keys import AdapterKey

__all__ = ["Ledger", "ledger_roots"]

_PREFIX = "learner/"
_GROUPS = 4096  # patterns come and go: the ones longest unseen are forgotten
_REMEMBERED = 1024  # ids: enough for every feedback that can be under way


class Ledger:
    """Baseline, accepted feedback per group, what waits for a replay, and which feedback was taken back, or is
    counted but not settled.
    """

    def __init__(self, root: AdapterKey, shrinkage: float) -> None:
        self.root = root
        self.baseline = Baseline(shrinkage)
        self.counts: dict[str, int] = {}
        self.chains: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        """Finest group of a lesson -> its whole chain: where the store keeps captures, and what they teach."""
        self.unreplayed: dict[str, int] = {}
        """Group -> lessons since its last replay"""
        self.news: dict[str, list[str]] = {}
        """Group -> lessons that no replay's version names yet, the newest of them"""
        self.undone: dict[str, float] = {}
        """Group -> when a lesson was given that was taken back, and may still be in its weights"""
        self.unfolded: dict[str, int] = {}
        """Group -> lessons since its last consolidation"""
        self.taken: dict[str, float] = {}
        """Group -> when a cycle, or a replay whose version was published, last took what was there: it may hold
        lessons that `news` has, after a crash if not before
        """
        self.born: dict[str, float] = {}
        """Group -> when its weights last began as those of a coarser level"""
        self.deferring: set[str] = set()
        """Groups whose coarser level serves in their place"""
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._withdrawn: OrderedDict[str, None] = OrderedDict()
        self._begins: OrderedDict[str, int] = OrderedDict()
        """Group -> the `CaptureHead.seq` up to which nothing teaches it any more"""

    def counted(self, feedback_id: str) -> bool:
        """Whether this feedback, whose outcome is not recorded, is already in the numbers."""
        return feedback_id in self._counted

    def withdrawn(self, feedback_id: str) -> bool:
        """Whether a rollback, or whoever gave it, took this feedback out of replay."""
        return feedback_id in self._withdrawn

    def teaches(self, head: CaptureHead, groups: Iterable[str]) -> bool:
        """Whether a kept answer with this chain is still for replay."""
        begins = max((self._begins.get(group, 0) for group in groups), default=0)
        return head.seq > begins and not self.withdrawn(head.feedback_id)

    def begin_after(self, group: str, seq: int) -> None:
        """Keep all that was kept of this group up to here out of every later replay."""
        self._begins[group] = seq
        self._begins.move_to_end(group)
        while len(self._begins) > _GROUPS:
            self._begins.popitem(last=False)

    def count(self, feedback_id: str, groups: Sequence[str], quality: float | None, *, again: bool = False) -> None:
        """One accepted feedback; a correction (None) moves no baseline. `again`: what says the same of the same
        answer as another is in the numbers by that.
        """
        _remember(self._counted, (feedback_id,))
        if again:
            return
        if quality is not None:
            self.baseline.push(quality, groups[-1])
        for group in groups:
            for counts in (self.counts, self.unfolded):
                counts[group] = counts.get(group, 0) + 1
        self.chains[groups[-1]] = tuple(groups)
        self.chains.move_to_end(groups[-1])
        while len(self.chains) > _GROUPS:
            gone, _ = self.chains.popitem(last=False)
            self.baseline.patterns.pop(gone, None)
            for counts in (self.counts, self.unreplayed, self.unfolded):
                counts.pop(gone, None)
            for times in (self.taken, self.born):
                times.pop(gone, None)
            self.news.pop(gone, None)
            self.deferring.discard(gone)

    def uncount(self, groups: Sequence[str], quality: float | None) -> None:
        """One that was counted so is taken back."""
        if quality is not None:
            self.baseline.pull(quality, groups[-1])
        for group in groups:
            for counts in (self.counts, self.unfolded):
                if counts.get(group):
                    counts[group] -= 1

    def note(self, feedback_ids: Collection[str], groups: Iterable[str], *, keep: int) -> None:
        """Lessons that wait for a replay of these groups, which names at most the newest `keep`."""
        for group in groups:
            new = [one for one in feedback_ids if not self.withdrawn(one)]
            self.unreplayed[group] = self.unreplayed.get(group, 0) + len(new)
            self.news[group] = list(dict.fromkeys([*self.news.get(group, ()), *new]))[-keep:]

    def replayed(self, group: str, lessons: int, named: Collection[str]) -> None:
        """A replay of so many lessons that waited has ended, and its version names these."""
        self.unreplayed[group] = max(0, self.unreplayed.get(group, 0) - lessons)
        self.news[group] = [one for one in self.news.get(group, ()) if one not in named]

    def forget_news(self, group: str) -> None:
        """Nothing waits for a replay of this group."""
        self.unreplayed.pop(group, None)
        self.news.pop(group, None)

    def withdraw(self, feedback_ids: Collection[str]) -> None:
        """Keep these out of every later replay."""
        gone = set(feedback_ids)
        _remember(self._withdrawn, feedback_ids)
        for group, news in self.news.items():
            left = [one for one in news if one not in gone]
            self.unreplayed[group] = max(0, self.unreplayed.get(group, 0) - len(news) + len(left))
            self.news[group] = left

    def settled(self, feedback_id: str) -> None:
        """Its outcome is durable, and with it the numbers: nobody asks again."""
        self._counted.pop(feedback_id, None)

    async def save(self, store: Store) -> None:
        """Durable when it returns."""
        writes = store.together()
        writes.put_blob(*self.blob())
        await writes.commit()

    def blob(self, *, settled: str = "") -> tuple[str, Callable[[], bytes]]:
        """Name and content, as they are once this feedback is settled. The content is made when it is called for,
        of what is here now: with thousands of patterns that takes milliseconds, and not the event loop's.
        """
        parts = {
            "baseline": self.baseline.to_json(),
            "counts": dict(self.counts),
            "unreplayed": dict(self.unreplayed),
            "news": dict(self.news),  # its lists are never changed, but replaced
            "undone": dict(self.undone),
            "unfolded": dict(self.unfolded),
            "taken": dict(self.taken),
            "born": dict(self.born),
            "deferring": sorted(self.deferring),
            "chains": dict(self.chains),
            "counted": [one for one in self._counted if one != settled],
            "withdrawn": list(self._withdrawn),
            "begins": dict(self._begins),
        }
        return _blob(self.root), functools.partial(_encoded, parts)

    @classmethod
    async def load(cls, store: Store, root: AdapterKey, shrinkage: float) -> Ledger:
        """As it was saved, or empty."""
        ledger = cls(root, shrinkage)
        blob = await store.get_blob(_blob(root))
        if blob is None:
            return ledger
        data = json.loads(blob)
        ledger.baseline = Baseline.from_json(data["baseline"], shrinkage)
        ledger.counts = {str(group): int(n) for group, n in data["counts"].items()}
        ledger.unreplayed = {str(group): int(n) for group, n in data.get("unreplayed", {}).items()}
        ledger.news = {str(group): list(ids) for group, ids in data.get("news", {}).items()}
        ledger.undone = {str(group): float(given) for group, given in data.get("undone", {}).items()}
        ledger.unfolded = {str(group): int(n) for group, n in data.get("unfolded", {}).items()}
        ledger.taken = {str(group): float(at) for group, at in data.get("taken", {}).items()}
        ledger.born = {str(group): float(at) for group, at in data.get("born", {}).items()}
        ledger.deferring = set(data.get("deferring", ()))
        ledger.chains = OrderedDict((finest, tuple(groups)) for finest, groups in data["chains"].items())
        if data["counted"]:
            waiting = {one.id for one in await store.pending_feedback()}
            _remember(ledger._counted, (one for one in data["counted"] if one in waiting))
        _remember(ledger._withdrawn, data["withdrawn"])
        ledger._begins = OrderedDict((group, int(seq)) for group, seq in data.get("begins", {}).items())
        return ledger


async def ledger_roots(store: Store, model: str) -> list[AdapterKey]:
    """Those of the model that have a ledger."""
    names = await store.blob_names(f"{_PREFIX}{model}/")
    roots = [AdapterKey.parse(name.removeprefix(_PREFIX)) for name in names]
    return [root for root in roots if root == AdapterKey(model, root.tenant)]


def _blob(root: AdapterKey) -> str:
    return f"{_PREFIX}{root}"


def _encoded(parts: Mapping[str, object]) -> bytes:
    """JSON. Part by part: other threads get their turn between any two."""
    return b"{" + b", ".join(f'"{name}": {json.dumps(part)}'.encode() for name, part in parts.items()) + b"}"


def _remember(ids: OrderedDict[str, None], more: Iterable[str]) -> None:
    for feedback_id in more:
        ids[feedback_id] = None
    while len(ids) > _REMEMBERED:
        ids.popitem(last=False)

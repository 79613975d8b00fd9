"""The index against a plain list of rows, over any history of additions, moves, supersessions and removals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory.encoding import codes_of
from sona_stream.engine.memory.index import EpisodeIndex
from sona_stream.episodes import EpisodeEntry, Place, Viewer
from sona_stream.kernels import load

DIM = 16
TENANTS, PEOPLE, MODELS = ("t0", "t1"), ("user:a", "user:b", "key:a"), (("m", "f"), ("m", "g"))

steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "supersede", "revive", "widen"]), st.integers(0, 10**6)
    ),
    max_size=60,
)


def entry(number, choice):
    rng = np.random.default_rng(choice)
    model, fingerprint = MODELS[choice % 2]
    return EpisodeEntry(
        number=number,
        rank=number,
        model=model,
        fingerprint=fingerprint,
        scope="person",
        tenant=TENANTS[choice // 2 % 2],
        person=PEOPLE[choice // 4 % 3],
        kind="correction",
        superseded_by=None,
        standing=float(choice % 7),
        static=rng.integers(-127, 128, DIM).astype(np.int8).tobytes(),
        place=Place(1, number * 64, 64 + choice % 5, number * 7),
    )


def sees(viewer, one):
    who = {
        "person": (one.tenant, one.person) == (viewer.tenant, viewer.person),
        "tenant": one.tenant == viewer.tenant,
    }
    return (one.model, one.fingerprint) == (viewer.model, viewer.fingerprint) and who.get(one.scope, True)


def play(index, history):
    """-> what is left, by number: (entry, whether it is current)."""
    left = {}
    for number, (what, choice) in enumerate(history, 1):
        if what == "add":
            left[number] = (entry(number, choice), True)
            index.add(left[number][0])
        elif left:
            chosen = sorted(left)[choice % len(left)]
            one, current = left[chosen]
            slot = index.slot_of(chosen)
            if what == "remove":
                assert index.remove([chosen]) == [(chosen, chosen * 7)]
                del left[chosen]
            elif what == "supersede":
                index.supersede(slot)
                left[chosen] = (one._replace(superseded_by=1), False)
            elif what == "revive" and not current:
                left[chosen] = (one._replace(superseded_by=None), True)
                index.move(slot, left[chosen][0])
            elif what == "widen" and current:
                left[chosen] = (one._replace(scope="tenant" if one.scope == "person" else "global"), True)
                index.move(slot, left[chosen][0])
    return left


@settings(max_examples=120, deadline=None)
@given(history=steps, seed=st.integers(0, 2**31), most=st.integers(1, 20))
@pytest.mark.parametrize("compiled", [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")])
def test_a_search_finds_what_the_viewer_may_see_and_nothing_else(compiled, history, seed, most):
    kernels = load(compiled=compiled)
    index = EpisodeIndex(kernels, DIM)
    left = play(index, history)
    query = codes_of(np.random.default_rng(seed).standard_normal(DIM).astype(np.float32), kernels)
    exact = query.values.astype(np.float64) / np.linalg.norm(query.values.astype(np.float64))
    for tenant in (*TENANTS, "t2"):
        for person in PEOPLE:
            for model, fingerprint in MODELS:
                viewer = Viewer(model=model, fingerprint=fingerprint, tenant=tenant, person=person)
                visible = {n: e for n, (e, current) in left.items() if current and sees(viewer, e)}
                found = index.search(viewer, query, least=-2.0, most=most)
                numbers = [index.number(slot) for slot in found.slots.tolist()]
                assert set(numbers) <= visible.keys()
                assert len(set(numbers)) == len(numbers) == min(most, len(visible))
                assert index.holds(viewer) == bool(visible)
                cosines = {}
                for number, one in visible.items():
                    codes = np.frombuffer(one.static, np.int8).astype(np.float64)
                    cosines[number] = float(codes @ exact / np.linalg.norm(codes))
                best = sorted(cosines.values(), reverse=True)[:most]
                np.testing.assert_allclose(found.cosines, best, atol=1e-5)
                np.testing.assert_allclose([cosines[n] for n in numbers], best, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(history=steps)
def test_its_books_are_right(history):
    index = EpisodeIndex(load(compiled=False), DIM)
    left = play(index, history)
    assert len(index) == len(left)
    assert index.total_bytes() == sum(one.place.length for one, _ in left.values())
    for tenant in TENANTS:
        theirs = {n: (e, current) for n, (e, current) in left.items() if e.tenant == tenant}
        assert index.usage(tenant) == (len(theirs), sum(e.place.length for e, _ in theirs.values()))
        expected = sorted(theirs, key=lambda n: (theirs[n][1], theirs[n][0].standing, n))
        assert [number for number, _ in index.least_useful(tenant)] == expected
    for number, (one, _) in left.items():
        slot = index.slot_of(number)
        assert index.place(slot) == one.place
        assert index.scope(slot) == one.scope
        assert index.fingerprint(slot) == one.fingerprint
    index.remove(left)
    assert len(index) == index.total_bytes() == len(index._circles) == 0

"""What memory makes of logits, against the formula over the whole vocabulary in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.lora import HiddenSpace
from sona_stream_adapters.episodes import RECENT, START, EpisodeStore, measured_space, mix, newest

D, V = 24, 60


def space(seed=0, version="v"):
    r = np.random.default_rng(seed)
    return HiddenSpace(r.standard_normal(D).astype(np.float32), (0.3 + r.random(D) * 3).astype(np.float32), version)


def store(**limits):
    return EpisodeStore(**{"max_bytes": 1 << 20, "limit": "the limit", "hidden_dim": D, "vocab_size": V} | limits)


def remembered(tokens, seed, vocabulary=V):
    r = np.random.default_rng(seed)
    return r.standard_normal((tokens, D)).astype(np.float32), r.integers(0, vocabulary, tokens).astype(np.int32)


def followed(tokens, said):
    """For each of an episode's tokens, how many of those before it were `said` last, 4 at most; so is the start."""
    found = []
    for i in range(len(tokens)):
        before, last = [START] * 4 + tokens[:i].tolist(), [START] * 4 + list(said)
        found.append(next((k for k in range(4) if before[-1 - k] != last[-1 - k]), 4))
    return found


def expected(logits, hidden, episodes, share, threshold, said=None):
    """(p (V,), part of it that came from memory (V,)) of one row; `episodes`: (hidden, ids, gate, space, share)."""
    s, ids, shares = [], [], []
    for keys, tokens, gate, where, own in episodes:
        unit = []
        for x in (*keys, hidden):
            z = x.astype(np.float64) if where is None else (x.astype(np.float64) - where.mean) / where.spread
            unit.append(z / np.linalg.norm(z))
        bonus = [0] * len(tokens) if said is None else followed(tokens, said)
        s += [gate * (u @ unit[-1] + f / 20) for u, f in zip(unit[:-1], bonus, strict=True)]
        ids += tokens.tolist()
        shares += [own] * len(tokens)
    s, ids = np.array(s), np.array(ids)
    order = np.argsort(-s)[:32]
    w = np.exp(60 * (s[order] - s.max()))
    memory = np.zeros(len(logits))
    np.add.at(memory, ids[order], w / w.sum())
    amount = share * shares[s.argmax()] / (1 + np.exp(-25 * (s.max() - threshold)))
    model = np.exp(logits - logits.max())
    p = (1 - amount) * model / model.sum() + amount * memory
    return p, amount * memory / p


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.floats(0.05, 1.0), st.integers(0, 2), st.sampled_from([1.0, 0.4, 0.1])),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 4),
    st.sampled_from([(0.9, 0.4), (0.5, 0.0), (0.999, -1.0), (0.0, 0.3)]),
    st.sampled_from([4, V]),
    st.one_of(st.none(), st.integers(0, 12)),
    st.integers(0, 1000),
)
def test_a_mixture_is_the_formula(shapes, rows, amounts, vocabulary, far, seed):
    """``far``: so many tokens of the first episode were said; None: nobody knows what was."""
    r = np.random.default_rng(seed)
    share, threshold = amounts
    spaces = [None, space(9001), space(9002)]
    here, episodes = store(), []
    for i, (tokens, gate, which, own) in enumerate(shapes):
        keys, ids = remembered(tokens, seed + i, vocabulary)
        here.put(f"e{i}", keys, ids, spaces[which])
        episodes.append((keys, ids, gate, spaces[which], own))
    names, gates, shares = (
        [f"e{i}" for i in range(len(shapes))],
        [one[1] for one in shapes],
        [one[3] for one in shapes],
    )
    active = here.activate(names, gates, shares=shares)
    if shares == [1.0] * len(shapes):
        assert here.activate(names, gates).shares is active.shares is None
    hidden = r.standard_normal((rows, D)).astype(np.float32)
    hidden[0] = episodes[0][0][0] + 0.1 * hidden[0]  # near to something
    logits = torch.from_numpy((r.standard_normal((rows, V)) * 4).astype(np.float32))
    said = None if far is None else episodes[0][1][:far].tolist()
    recent = None if said is None else torch.tensor([([START] * RECENT + said)[-RECENT:]] * rows)
    mixture = mix(logits, torch.from_numpy(hidden), active, share=share, threshold=threshold, recent=recent)
    changed = logits.clone()
    mixture.write(changed, torch.arange(rows))
    labels = torch.from_numpy(r.integers(0, V, rows))
    labels[0] = int(episodes[0][1][0])
    told = mixture.share(labels)
    for row in range(rows):
        p, part = expected(logits[row].double().numpy(), hidden[row], episodes, share, threshold, said)
        ours = torch.softmax(changed[row].double(), 0).numpy()
        assert np.abs(ours - p).max() <= 1.2e-2 * p.max()  # keys are kept in half precision; 60 s amplifies it
        assert float(told[row]) == pytest.approx(part[labels[row]], abs=4e-2)
        others = [v for v in range(V) if all(v not in ids for _, ids, *_ in episodes)]
        assert torch.equal(changed[row, others], logits[row, others])


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6)), st.booleans())
def test_the_newest_tokens_are_the_last_ones_that_were_drawn(steps, counted):
    """Some of each step's are rejected drafts."""
    said, recent = [], torch.full((RECENT,), START)
    for step in steps:
        kept = len(step) - step[0] % len(step)
        drawn = torch.tensor(step[:kept] + ([5] if counted else [-1]) * (len(step) - kept), dtype=torch.int32)
        recent = newest(recent, drawn, torch.tensor(kept) if counted else None)
        said += step[:kept]
        assert recent.tolist() == ([START] * RECENT + said)[-RECENT:]


def test_only_the_rows_written_to_change():
    here = store()
    keys, ids = remembered(8, 0)
    here.put("e", keys, ids, space())
    active = here.activate(["e"], [1.0])
    hidden, logits = torch.randn(5, D), torch.randn(5, V)
    rows = torch.tensor([3, 1])
    mixture = mix(logits[rows], hidden[rows], active, share=0.9, threshold=-1.0)
    changed = logits.clone()
    mixture.write(changed, rows)
    assert torch.equal(changed[[0, 2, 4]], logits[[0, 2, 4]])
    assert not torch.equal(changed[1], logits[1])
    for place, row in enumerate(rows.tolist()):
        alone = mix(logits[row][None], hidden[row][None], active, share=0.9, threshold=-1.0)
        torch.testing.assert_close(alone.mixed[0].sort()[0], mixture.mixed[place].sort()[0])
        label = int(ids[0])
        chosen = mixture.share(torch.tensor([label]), torch.tensor([place]))
        torch.testing.assert_close(chosen, alone.share(torch.tensor([label])))


def test_logits_of_low_precision_and_of_impossible_tokens():
    here = store()
    keys, ids = remembered(6, 0)
    here.put("e", keys, ids, None)
    active = here.activate(["e"], [1.0])
    logits = torch.randn(1, V).to(torch.bfloat16)
    logits[0, int(ids[0])] = -torch.inf
    mixture = mix(logits, torch.from_numpy(keys[:1]), active, share=0.9, threshold=0.4)
    mixture.write(logits, torch.tensor([0]))
    assert logits.dtype == torch.bfloat16
    p = torch.softmax(logits.float(), 1)[0]
    assert torch.isfinite(p).all()
    assert float(p[int(ids[0])]) > 0.8
    assert float(mixture.share(torch.tensor([int(ids[0])]))) == 1.0


def test_a_space_is_what_the_states_show():
    states = torch.randn(300, D).double() * torch.linspace(0.5, 9, D) + 3
    states[:, 5] = 1.25  # does not move at all
    found = measured_space(states.float(), "v3")
    spread = states.numpy().std(axis=0)
    np.testing.assert_allclose(found.mean, states.mean(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.delete(found.spread, 5), np.delete(spread, 5), rtol=1e-5)
    assert found.spread[5] == pytest.approx(1e-3 * spread.mean(), rel=1e-4)
    assert found.version == "v3"
    assert (found.mean.dtype, found.spread.dtype) == (np.float32, np.float32)


def test_the_beginning_of_an_answer_is_no_reason_to_recall_what_hardly_concerns_it():
    """A state at cosine .3 to a remembered one of gate .5; the model's own token is 8 above. The threshold: .3."""
    here = store()
    keys = np.zeros((1, D), np.float32)
    keys[0, 0] = 1.0
    here.put("e", keys, np.array([7], np.int32), None)
    active = here.activate(["e"], [0.5])
    hidden, logits = torch.zeros(1, D), torch.full((1, V), -20.0)
    hidden[0, 0], hidden[0, 1] = 0.3, (1 - 0.3**2) ** 0.5
    logits[0, 3], logits[0, 7] = 8.0, 0.0
    for recent, f in ((None, 0), (torch.full((1, RECENT), START), 4)):
        mixture = mix(logits, hidden, active, share=0.998, threshold=0.3, recent=recent)
        changed = logits.clone()
        mixture.write(changed, torch.tensor([0]))
        amount = 0.998 / (1 + np.exp(-25 * (0.5 * (0.3 + f / 20) - 0.3)))
        told = float(changed.softmax(1)[0, 7])
        assert told == pytest.approx(amount + (1 - amount) * np.exp(-8.0), rel=0.01)
        assert told < 0.25

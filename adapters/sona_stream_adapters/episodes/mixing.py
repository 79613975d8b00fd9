"""What remembered answers add to a row's logits (k-nearest-neighbour language models: Khandelwal et al. 2020,
https://arxiv.org/abs/1911.00172).

    s_i = g_e (cos(h, h_i) + f_i / 20) over the pairs of the named episodes, h standardised
    w = softmax(60 s over the top 32)      p_memory = sum w_i onehot(y_i)
    p = (1 - l) p_model + l p_memory       l = share * share_e * sigmoid(25 (max s - threshold))

f_i in 0..4 is how many of the tokens said last stand before pair i in its episode, too; an answer's beginning
counts like tokens. States alone confuse places where like things follow ("14" for "148"); with f an answer goes on
as it began. It is 0 where nobody knows what was said. The gate g_e scales both: what is hardly about this question
does not come to speak because an answer begins.

share_e is that of the episode with the largest s: 1 for a correction.
p_memory is 0 but for at most 32 tokens. As logits count only up to a constant, (1 - l) p_model are the model's own
logits, bit for bit, and a token y of memory has log(exp(logit_y) + l / (1 - l) p_memory(y) sum exp(logits)).
"""

from __future__ import annotations

import dataclasses

import torch

from .space import Space

__all__ = ["RECENT", "START", "UNKNOWN", "ActiveEpisodes", "Episode", "Mixture", "mix", "newest"]

NEIGHBOURS = 32
SHARPNESS = 60.0
STEEPNESS = 25.0
RECENT = 4
"""tokens that tell where in an episode an answer is"""
FOLLOWED = 0.05
"""of cosine, for each of them"""
START, UNKNOWN = -1, -2
"""what stands before the first token; what is like no token"""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Episode:
    """One remembered answer."""

    key: str
    space: Space | None
    """None: states are compared as they are"""
    states: torch.Tensor
    """(T, d) float16 of length 1"""
    token_ids: torch.Tensor
    """(T,) int64"""
    version: str = ""
    """of the space"""

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.states.numel() * 2 + self.token_ids.numel() * 8


@dataclasses.dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ActiveEpisodes:
    """Those that one request names, by the space they were standardised in. Whoever holds it keeps them."""

    named: tuple[tuple[Episode, float, float], ...]
    """with their gates and shares, in the request's order"""
    parts: tuple[tuple[Space | None, torch.Tensor], ...]
    """(space, keys (n, d) float32)"""
    token_ids: torch.Tensor
    """(N,) int64, of all parts"""
    gates: torch.Tensor
    """(N,) float32"""
    before: torch.Tensor
    """(N, RECENT) int64: the tokens before each of them in its episode, the last one last"""
    shares: torch.Tensor | None
    """(N,) float32; None: 1 for all"""

    @classmethod
    def of(cls, named: tuple[tuple[Episode, float, float], ...]) -> ActiveEpisodes:
        """At least one."""
        by_space: dict[int, list[tuple[Episode, float, float]]] = {}
        for one in named:
            by_space.setdefault(id(one[0].space), []).append(one)
        parts, ids, gates, before, shares = [], [], [], [], []
        for group in by_space.values():
            parts.append((group[0][0].space, torch.cat([e.states for e, *_ in group]).float()))
            ids += [e.token_ids for e, *_ in group]
            gates += [_each(e, gate) for e, gate, _ in group]
            before += [_before(e.token_ids) for e, *_ in group]
            shares += [_each(e, share) for e, _, share in group]
        whole = all(share == 1.0 for *_, share in named)
        weights = None if whole else torch.cat(shares)
        return cls(named, tuple(parts), torch.cat(ids), torch.cat(gates), torch.cat(before), weights)

    @property
    def nbytes(self) -> int:
        """On the device, beside the episodes themselves: twice these and a little more."""
        states = sum(keys.numel() for _, keys in self.parts)
        return 4 * states + (8 * (1 + RECENT) + 4 + 4 * (self.shares is not None)) * self.token_ids.numel()

    def is_of(self, named: tuple[tuple[Episode, float, float], ...]) -> bool:
        """Whether it was made of these very episodes."""
        same = len(named) == len(self.named)
        return same and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(named, self.named, strict=True))

    def similarities(self, hidden: torch.Tensor, recent: torch.Tensor | None = None) -> torch.Tensor:
        """What the formula calls s: `hidden` (m, d), `recent` (m, RECENT) as in `mix` -> (m, N)."""
        found = []
        for space, keys in self.parts:
            unit = torch.nn.functional.normalize(hidden.float(), dim=1) if space is None else space.unit(hidden)
            found.append(unit @ keys.T)
        similar = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        if recent is not None:
            similar = similar + FOLLOWED * self.followed(recent)
        return similar * self.gates

    def followed(self, recent: torch.Tensor) -> torch.Tensor:
        """How many of the `recent` tokens (m, RECENT), the last one last, stand before each pair, too: (m, N)."""
        alike = self.before[None] == recent[:, None]
        return alike.flip(2).cumprod(2).sum(2)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What memory says about some rows: the logits of at most 32 tokens change."""

    token_ids: torch.Tensor
    """(m, k) int64; where a token stands more than once, all its entries are alike"""
    own: torch.Tensor
    """(m, k) float32: the model's own logits of these tokens"""
    mixed: torch.Tensor
    """(m, k) float32: what they become"""

    def write(self, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Into `logits` (n, V) at `rows` (m,) int64; nothing else is touched."""
        logits.index_put_((rows[:, None], self.token_ids), self.mixed.to(logits.dtype))

    def share(self, labels: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """(m,) float32: the part of each row's probability of ``labels[row]`` (m,) that came from memory. `places`
        (m,) choose among the rows.
        """
        ids, own, mixed = (
            each if places is None else each[places] for each in (self.token_ids, self.own, self.mixed)
        )
        share = -torch.expm1(own - mixed)
        return torch.where(ids == labels[:, None], share, 0.0).amax(1)


def mix(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    episodes: ActiveEpisodes,
    *,
    share: float,
    threshold: float,
    recent: torch.Tensor | None = None,
) -> Mixture:
    """`logits` (m, V) at temperature 1 of the policy that serves, `hidden` (m, d) of the unadapted model, and what
    each answer said last, `recent` (m, RECENT) int64, with `START` where there is nothing and `UNKNOWN` where it is
    not known; None: of no answer.
    """
    similar = episodes.similarities(hidden, recent)
    top, index = torch.topk(similar, min(NEIGHBOURS, similar.shape[1]), dim=1)
    weights = torch.softmax(SHARPNESS * top, dim=1)
    ids = episodes.token_ids[index]
    pooled = ((ids[:, :, None] == ids[:, None, :]) * weights[:, None, :]).sum(2)
    amount = share * torch.sigmoid(STEEPNESS * (top[:, :1] - threshold))
    if episodes.shares is not None:
        amount = amount * episodes.shares[index[:, :1]]
    odds = amount.log() - torch.log1p(-amount)
    own = logits.gather(1, ids).float()
    total = torch.logsumexp(logits.float(), 1, keepdim=True)
    return Mixture(ids, own, torch.logaddexp(own, total + odds + pooled.log()))


def _each(episode: Episode, value: float) -> torch.Tensor:
    """`value` for each of its tokens."""
    return torch.full((len(episode.token_ids),), value, device=episode.states.device)


def newest(recent: torch.Tensor, drawn: torch.Tensor, accepted: torch.Tensor | None = None) -> torch.Tensor:
    """The last of `recent` (RECENT,) and then of the `drawn` (k,) that are tokens: so many as were `accepted`, else
    those of at least 0. Nothing waits for the device.
    """
    count = (drawn >= 0).sum() if accepted is None else accepted
    whole = torch.cat([recent, drawn.to(recent.dtype)])
    return whole.gather(0, torch.arange(RECENT, device=recent.device) + count)


def _before(token_ids: torch.Tensor) -> torch.Tensor:
    """(T,) -> (T, RECENT)."""
    return torch.nn.functional.pad(token_ids, (RECENT, -1), value=START).unfold(0, RECENT, 1)

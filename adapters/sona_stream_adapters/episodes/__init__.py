"""Memory of episodes at a host: (hidden state, next token) pairs of remembered answers, mixed in at the logits of
the requests that name them. Knows tensors, no engine. Importing this loads torch.
"""

from __future__ import annotations

from .mixing import RECENT, START, UNKNOWN, ActiveEpisodes, Episode, Mixture, mix, newest
from .space import Space, measured_space
from .store import EpisodeStore

__all__ = [
    "RECENT",
    "START",
    "UNKNOWN",
    "ActiveEpisodes",
    "Episode",
    "EpisodeStore",
    "Mixture",
    "Space",
    "measured_space",
    "mix",
    "newest",
]

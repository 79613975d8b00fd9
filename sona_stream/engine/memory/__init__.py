"""The memory of episodes: answers that a person corrected or accepted, used again for the same question.

An episode is a question (two vectors and a few features of its words) and the pairs (hidden state of the unadapted
pass, next token) of its answer. Recall has two stages: an int8 search over the static vectors of the episodes that
the asker may see, and, only if that finds a candidate, a gate on the contextual encoder's cosine less what
differing words take off it (`comparison`). Without the contextual encoder only near-exact matches pass. The host
mixes those that pass at the logits (`EpisodeRef`, `HiddenStateHost.put_episode`).

    person -> tenant -> global: by `promote`; a search reads the asker's own three circles and nothing else
    the newest wins: a newer answer in a circle to the same question supersedes the older, which `undo` returns

Sizes: an answer is kept up to `sona.memory.max_tokens` tokens. In memory an episode takes a third of a KB; the rest
is in memory-mapped segments of the state folder, or in memory where nothing may be written (`durable` says which).
"""

from __future__ import annotations

from .memory import STATIC_DIM, EpisodeMemory
from .questions import question_of
from .recollection import Recalled
from .writing import Remembered, Undone

__all__ = ["STATIC_DIM", "EpisodeMemory", "Recalled", "Remembered", "Undone", "question_of"]

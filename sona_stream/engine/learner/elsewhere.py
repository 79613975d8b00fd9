"""Text that nobody taught: what a preference for some answers must not change.

A fit sees answers alone, and what it learns of them holds on any text: a bias towards "you" is one in an
encyclopaedia, too. So a fixed text is read to every model once, and counts twice:

- the first row of a new adapter's A sets answers apart from it (``Curvature.contrast``), so that there is a
  direction which acts on the one and not on the other;
- every step pays for what it changes there, ``elsewhere`` times as much as on the answers themselves (see `ewc`:
  the text is a domain whose reference is the model alone).
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from ...errors import HostAway, HostError
from ...lora import F32, LoraWeights, LowRank
from ...protocols import HiddenStateHost
from ...reference import REFERENCE_TEXT
from .domains import Domain

__all__ = ["Elsewhere", "elsewhere_of"]

_log = logging.getLogger(__name__)

_NAME = "elsewhere"
_BEFORE = (0,)
"""Something must precede the first token; there is no model without a token 0."""
_PARTS = (1, 2, 4)
"""A model with a small context reads the beginning."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Elsewhere:
    """What is known of the text under one model."""

    hidden: F32
    """(m, d) states of the model alone"""
    domain: Domain


async def elsewhere_of(host: HiddenStateHost) -> Elsewhere | None:
    """By one prefill. None, with a warning, where the host cannot read even a part of it. Raises HostAway."""
    for part in _PARTS:
        try:
            text = REFERENCE_TEXT[: len(REFERENCE_TEXT) // part]
            capture = await host.encode(_BEFORE, text, request_id=_NAME, hidden=True)
            found = await host.curvature([capture])
            await host.release(_NAME)
            break
        except HostAway:
            raise
        except HostError as error:
            reason = str(error)
    else:
        _log.warning("nothing holds learned adapters on text from elsewhere: %s", reason)
        return None
    if found.inputs is None:
        return None
    hidden = np.array(capture.hidden, np.float32)
    none = np.zeros((0, hidden.shape[1]), np.float32)
    alone = LoraWeights(LowRank(none, none.T))
    return Elsewhere(hidden, Domain(_NAME, 0, alone, (), found.outputs, found.inputs))

"""The learner of a `HiddenStateHost`: from judged answers to served adapter versions."""

from .capturing import accepted_capture, correction_capture
from .keys import AdapterKey
from .learner import Learner
from .rates import Mode, Rates

__all__ = ["AdapterKey", "Learner", "Mode", "Rates", "accepted_capture", "correction_capture"]

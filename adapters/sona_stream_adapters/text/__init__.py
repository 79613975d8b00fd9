"""Between text and token ids, for models that run here: prompts on the way in, answers on the way out.

Needs no engine: a tokenizer as transformers has it, and numbers.
"""

from __future__ import annotations

from .answer import AnswerText, token_names
from .detokenize import Detokenizer, StopStrings
from .prompts import TextModel, prompt_ids
from .reference import REFERENCE_VERSION, reference_ids
from .sampling import check_sampling
from .stream import Item, completion_id, events_of

__all__ = [
    "REFERENCE_VERSION",
    "AnswerText",
    "Detokenizer",
    "Item",
    "StopStrings",
    "TextModel",
    "check_sampling",
    "completion_id",
    "events_of",
    "prompt_ids",
    "reference_ids",
    "token_names",
]

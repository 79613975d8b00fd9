"""The fixed text that a model's states are standardised by."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from sona_stream_adapters.text.reference import REFERENCE_TEXT, REFERENCE_VERSION, reference_ids

LETTERS = SimpleNamespace(encode=lambda text, add_special_tokens: [ord(one) for one in text])
WORDS = SimpleNamespace(encode=lambda text, add_special_tokens: list(range(len(text.split()))))


def test_another_text_is_another_version():
    digest = hashlib.sha256(REFERENCE_TEXT.encode()).hexdigest()[:16]
    assert (REFERENCE_VERSION, digest) == ("reference-1", "04560c4489043512")


def test_as_much_of_it_as_there_is_room_for():
    lead, rest = reference_ids(LETTERS, 100_000)
    assert (len(lead), len(rest)) == (16, 496)
    assert "".join(map(chr, lead + rest)) == REFERENCE_TEXT[:512]
    lead, rest = reference_ids(LETTERS, 100)
    assert (len(lead), len(rest)) == (16, 84)
    assert list(map(len, reference_ids(LETTERS, 10))) == [5, 5]
    lead, rest = reference_ids(WORDS, 100_000)
    assert len(lead + rest) == len(REFERENCE_TEXT.split()) > 300
    with pytest.raises(ValueError, match="no room"):
        reference_ids(LETTERS, 1)

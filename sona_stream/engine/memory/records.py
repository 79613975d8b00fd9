"""What a record says of itself: whose it is, and the episode that it becomes."""

from __future__ import annotations

import time

from ...episodes import Episode, EpisodeRecord, Viewer, person_of

__all__ = ["is_said_anew", "unnumbered", "viewer_of"]


def viewer_of(record: EpisodeRecord | Episode) -> Viewer:
    """Who gave it, asking again."""
    return Viewer(
        model=record.model,
        fingerprint=record.fingerprint,
        tenant=record.tenant,
        person=person_of(record.user, record.key_id),
    )


def unnumbered(record: EpisodeRecord, tokens: int) -> Episode:
    """The episode that this becomes, of which so many tokens are kept; the store numbers it."""
    return Episode(
        key="",
        number=0,
        model=record.model,
        fingerprint=record.fingerprint,
        scope="person",
        tenant=record.tenant,
        user=record.user,
        key_id=record.key_id,
        request_id=record.request_id,
        feedback_id=record.feedback_id,
        kind=record.kind,
        tokens=tokens,
        answer_tokens=len(record.token_ids),
        nbytes=0,
        created_at=record.created_at or time.time(),
        stored_at=time.time(),
        question=record.question,
        text=record.text,
    )


def is_said_anew(there: Episode, record: EpisodeRecord) -> bool:
    """Whether this record is another judgement than the one that made the same answer an episode. What is said anew
    lasts anew: it stands for the first, which undo brings back as it was. To find a correction good is not that.
    """
    return there.kind == record.kind and there.feedback_id != record.feedback_id

"""What `sona.storage` lets reach the disk, decided in one place, before anything is queued.

| kept                                                        | none | features           | text |
| ----------------------------------------------------------- | ---- | ------------------ | ---- |
| routing facts, numbers, scores, our request id, key id      | yes  | yes                | yes  |
| end user, client's ids, completion id, idempotency key      | no   | yes                | yes  |
| embedding, token ids, captures with hidden states           | no   | yes                | yes  |
| episodes: vectors, hashed words, token ids, hidden states   | no   | yes                | yes  |
| an episode's question, answer and request                   | no   | no                 | yes  |
| what a request asked: vectors, hashed words                 | no   | yes                | *    |
| blobs named ``routing/...``: patterns, made of embeddings   | no   | yes                | yes  |
| a correction's text                                         | no   | until its outcome  | yes  |
| query, body, answer, stop strings                           | no   | no                 | yes  |

(*) At `text` the request itself is kept instead.

What `features` keeps is not what was said, and is not anonymous either. Whoever reads the disk can turn token ids
back into text with the model's tokenizer. An episode's or a question's vectors tell what it is about, and from a
contextual vector much of a short text can be guessed (Morris et al. 2023, https://arxiv.org/abs/2310.06816); the
hashes of its words are keyed with a secret that lies in the same folder, so a guess of a word can be checked there,
and without the folder cannot. Who must keep nothing of the kind uses `none`.

At `none` the ids that a client sent still find their request while this process lives: they are kept as keyed
hashes whose key is never written. An idempotency key is compared by keyed hash at every level, with a key of the
state folder, because a retry may come after a crash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets

from ..config.settings import Storage
from ..events import Feedback, Trajectory

__all__ = [
    "Redaction",
    "content_digest",
    "idempotency_digest",
    "impersonal_model",
    "text_bytes",
    "text_from",
]

_AUTO = "sona/auto"


def text_bytes(text: str | None) -> bytes | None:
    """UTF-8 that also takes lone surrogates, which JSON may bring and SQLite's TEXT refuses."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def text_from(data: bytes | None) -> str | None:
    """Inverse of `text_bytes`."""
    return None if data is None else data.decode("utf-8", "surrogatepass")


def impersonal_model(trajectory: Trajectory) -> str:
    """The requested model when it is a name of ours; what else a client wrote there may be anything."""
    known = trajectory.requested_model in (trajectory.model, _AUTO)
    return trajectory.requested_model if known else ""


class Redaction:
    """Applies one level of `sona.storage`."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._key = secrets.token_bytes(32)

    def trajectory(self, trajectory: Trajectory) -> Trajectory:
        """The same trajectory without what this level does not keep."""
        if self.storage == "text":
            return trajectory
        sampling = trajectory.sampling
        if sampling.stop:
            sampling = dataclasses.replace(sampling, stop=())
        bare = dataclasses.replace(trajectory, query=None, body=None, answer=None, sampling=sampling)
        if self.storage == "features":
            return bare
        return dataclasses.replace(
            bare,
            user=None,
            client_ids=(),
            completion_id=None,
            embedding=None,
            prompt_ids=(),
            token_ids=(),
            requested_model=impersonal_model(bare),
        )

    def names(self, trajectory: Trajectory) -> tuple[bytes, ...]:
        """What the ids that feedback may use are looked up by, beside our own request id."""
        ids = dict.fromkeys((*trajectory.client_ids, trajectory.completion_id or ""))
        return tuple(self.name(one) for one in ids if one)

    def name(self, any_id: str) -> bytes:
        """One id as the index has it."""
        plain = any_id.encode("utf-8", "surrogatepass")
        if self.storage == "none":
            return hashlib.blake2b(plain, key=self._key, digest_size=16).digest()
        return plain

    def feedback(self, feedback: Feedback) -> Feedback:
        """The same feedback without what this level does not keep while it waits for its outcome."""
        if self.storage != "none":
            return feedback
        return dataclasses.replace(feedback, user=None, correction=None, idempotency_key=None)


def idempotency_digest(feedback: Feedback, key: bytes) -> bytes | None:
    """What makes a retry recognisable: None when the client sent no idempotency key."""
    if feedback.idempotency_key is None:
        return None
    plain = feedback.idempotency_key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(plain, key=key, digest_size=16).digest()


def content_digest(feedback: Feedback, key: bytes) -> bytes:
    """Of what the client said, so that a retry can be told from other content under the same key.

    Call it with what `Redaction.feedback` left: at `none` a correction's text has no part in it.
    """
    parts = (
        feedback.request_id,
        feedback.kind,
        repr(feedback.quality),
        repr(feedback.metric_name),
        repr(feedback.value),
        repr(feedback.correction),
    )
    plain = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(plain, key=key, digest_size=16).digest()

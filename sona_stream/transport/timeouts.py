"""The limits of one exchange, kept apart."""

from __future__ import annotations

import dataclasses

__all__ = ["Timeouts"]


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds each."""

    connect: float = 5.0
    """Name lookup, TCP and TLS handshake together."""
    first_byte: float = 600.0
    """From the request being written to the first byte of the answer's body: a model may think long, also
    after it has sent its headers. Also bounds the wait for a free connection under a cap."""
    idle: float = 300.0
    """Between two reads of the body, while the consumer waits."""

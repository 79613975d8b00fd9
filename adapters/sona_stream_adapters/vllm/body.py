"""What is added to a client's body: the arguments that bind its adapter, in place of any that it sent itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["with_fields"]

# A body that may already have one of these names, plainly or escaped, is taken apart; all others keep every byte.
_OURS = re.compile(rb"vllm_xargs|return_token_ids|\\u00[2-7]")
_PREFIX = "sona"


def with_fields(body: bytes, xargs: Mapping[str, Any], *, token_ids: bool) -> bytes:
    """The body with these ``vllm_xargs`` beside the client's own, of which those called ``sona*`` go; with
    ``return_token_ids`` where asked for. The very same object when there is nothing to do.
    """
    added: dict[str, Any] = {"return_token_ids": True} if token_ids else {}
    if not _OURS.search(body):
        if xargs:
            added["vllm_xargs"] = dict(xargs)
        return _inserted(body, added) if added else body
    value = json.loads(body)
    given = value.get("vllm_xargs")
    known = given if isinstance(given, dict) else {}
    kept = {name: one for name, one in known.items() if not name.lower().startswith(_PREFIX)}
    value |= added
    if kept or xargs:
        value["vllm_xargs"] = {**kept, **xargs}
    else:
        value.pop("vllm_xargs", None)
    return json.dumps(value).encode()


def _inserted(body: bytes, fields: Mapping[str, Any]) -> bytes:
    start = body.index(b"{") + 1
    comma = b"" if body[start:].lstrip().startswith(b"}") else b","
    return body[:start] + json.dumps(fields)[1:-1].encode() + comma + body[start:]

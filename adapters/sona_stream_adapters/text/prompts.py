"""A request's prompt as token ids, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sona_stream.errors import InvalidRequest
from sona_stream.events import Request

__all__ = ["TextModel", "prompt_ids"]


class TextModel(Protocol):
    """What a prompt needs to know of a model."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Any:
        """As transformers has them."""
        ...

    @property
    def context(self) -> int:
        """Positions, prompt and answer together."""
        ...

    @property
    def vocab_size(self) -> int: ...


def prompt_ids(model: TextModel, request: Request) -> list[int]:
    """Raises InvalidRequest naming the field when it cannot be done or leaves no room for an answer."""
    param = "messages" if request.endpoint == "chat.completions" else "prompt"
    ids = _chat(model, request) if param == "messages" else _raw(model, request.prompt)
    if not ids:
        raise InvalidRequest(f"{param} has no tokens", param=param)
    if len(ids) >= model.context:
        raise InvalidRequest(
            f"{param} has {len(ids)} tokens; the context of {model.name} is {model.context}, the answer included",
            param=param,
        )
    return ids


def _chat(model: TextModel, request: Request) -> list[int]:
    from jinja2 import TemplateError

    if not model.tokenizer.chat_template:
        raise InvalidRequest(f"{model.name} has no chat template: use /v1/completions", param="messages")
    messages = [_plain(message, index, model.name) for index, message in enumerate(request.messages)]
    try:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise InvalidRequest(
            f"messages do not fit the chat template of {model.name}: {error}", param="messages"
        ) from error
    return _tokenize(model, text, special=False)


def _plain(message: Mapping[str, Any], index: int, name: str) -> dict[str, str]:
    """Role and text. Parts of a content list are joined; what is not text is refused."""
    role, content = str(message.get("role", "user")), message.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidRequest(
                    f"messages[{index}].content: {name} reads text only",
                    param=f"messages[{index}].content",
                )
            parts.append(part["text"])
        content = "".join(parts)
    return {"role": "system" if role == "developer" else role, "content": content}


def _raw(model: TextModel, prompt: str | tuple[int, ...] | None) -> list[int]:
    if prompt is None:
        raise InvalidRequest(f"prompt: {model.name} takes one prompt a request", param="prompt")
    if isinstance(prompt, str):
        return _tokenize(model, prompt, special=True)
    if any(not 0 <= token < model.vocab_size for token in prompt):
        raise InvalidRequest(f"prompt: token ids must be in 0..{model.vocab_size - 1}", param="prompt")
    return list(prompt)


def _tokenize(model: TextModel, text: str, *, special: bool) -> list[int]:
    # `verbose=False`: the tokenizer's own warning about long texts; the context is checked here.
    ids: list[int] = model.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids

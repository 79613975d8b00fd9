"""`sona-stream chat`: a conversation in the terminal that learns from what you say about the answers."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from .connection import DEFAULT_BASE_URL, Connection, server_options
from .own_server import own_server

__all__ = ["chat"]

_HELP = """\
  /good            the last answer was good: more like this
  /bad             the last answer was bad: less like this
  /fix TEXT        the answer should have been TEXT
  /undo            take back what you last said of an answer
  /undo REQUEST    the same, of this answer (/why shows its request-id)
  /why             which model answered, and why
  /stats           what has been learned so far
  /new             forget this conversation (what was learned stays)
  /help, /quit"""


class _Session:
    """The conversation so far, and the last answer's headers."""

    def __init__(self, connection: Connection, model: str, system: str | None, options: dict[str, Any]) -> None:
        self.connection, self.model, self.system, self.options = connection, model, system, options
        self.messages: list[dict[str, str]] = []
        self.last: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> None:
        """Print the answer as it comes. Ctrl-C stops it; what was said until then belongs to the conversation."""
        body = {"model": self.model, "messages": [*self.messages, _turn("user", text)], **self.options}
        said: list[str] = []
        try:
            with self.connection.stream_chat(body) as answer:
                self.last = answer.headers
                for piece in answer:
                    said.append(piece)
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.secho(" [stopped]", dim=True, nl=False)
        finally:
            click.echo()
            if said:
                self.messages += [_turn("user", text), _turn("assistant", "".join(said))]

    def teach(self, **verdict: Any) -> None:
        """Send feedback on the last answer and say what became of it."""
        if "x-sona-request-id" not in self.last:
            click.secho("there is no answer to judge yet", dim=True)
            return
        body = {"request_id": self.last["x-sona-request-id"], **verdict}
        outcome = self.connection.call("POST", "/v1/feedback?wait=1", body)
        where = f" -> {outcome['adapter']}" if outcome.get("adapter") else ""
        reason = f": {outcome['reason']}" if outcome.get("reason") else ""
        click.secho(f"[{outcome['status']}{where}{reason}]", dim=True)
        if "correction" in verdict and self.messages and self.messages[-1]["role"] == "assistant":
            self.messages[-1]["content"] = verdict["correction"]

    def undo(self, request_id: str) -> None:
        """Take back the last judgement, or the last of this request, and say which that was."""
        body = {"request_id": request_id} if request_id else {}
        undone = self.connection.call("POST", "/v1/feedback/undo", body)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(undone["created_at"]))
        said = f"[taken back: your {_judgement(undone)} of {when}"
        if undone["episode"]:
            said += f", {undone['episode']} is forgotten"
        if undone["adapter"]:
            said += f"; {undone['adapter']} goes, too"
        click.secho(f"{said}]", dim=True)

    def why(self) -> None:
        shown = ("model", "pattern", "reason", "similarity", "adapter", "adapter-reason", "episodes", "request-id")
        for name in shown:
            if value := self.last.get(f"x-sona-{name}"):
                click.secho(f"  {name:<14} {value}", dim=True)

    def stats(self) -> None:
        for name, value in _flat(self.connection.call("GET", "/v1/sona/stats")):
            click.secho(f"  {name:<40} {value}", dim=True)


def _judgement(feedback: Any) -> str:
    if feedback["kind"] == "correction":
        return "/fix"
    if feedback["kind"] == "metric":
        return f"value of {feedback['metric_name']}"
    return "/good" if feedback["value"] > 0 else "/bad"


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [row for key, value in tree.items() for row in _flat(value, f"{prefix}.{key}" if prefix else key)]


def _obey(session: _Session, line: str) -> bool:
    """Run one `/command`; False ends the chat."""
    command, _, rest = line.partition(" ")
    if command in ("/quit", "/exit", "/q"):
        return False
    if command == "/good":
        session.teach(rating=1)
    elif command == "/bad":
        session.teach(rating=-1)
    elif command == "/fix":
        if rest.strip():
            session.teach(correction=rest.strip())
        else:
            click.secho("say what the answer should have been: /fix TEXT", dim=True)
    elif command == "/undo":
        session.undo(rest.strip())
    elif command == "/why":
        session.why()
    elif command == "/stats":
        session.stats()
    elif command == "/new":
        session.reset()
    else:
        click.echo(_HELP)
    return True


def _talk(session: _Session) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history, where the platform has it)
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            click.echo()
            continue
        except EOFError:
            click.echo()
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                if not _obey(session, line):
                    return
            else:
                session.ask(line)
        except KeyboardInterrupt:
            click.echo()
        except click.ClickException as error:
            click.secho(error.format_message(), fg="red", err=True)


@click.command()
@server_options
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Start a server with this file.")
@click.option("--model", default="sona/auto", show_default=True, help="Model to ask; sona/auto routes.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Sampling temperature.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=512, show_default=True)
def chat(
    base_url: str,
    api_key: str | None,
    config: str | None,
    model: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int,
) -> None:
    """Talk to a model that learns from you: /good, /bad and /fix change the next answers.

    Uses the server at --base-url; when that is the default and none runs there, starts one for this chat.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    connection = Connection(base_url, api_key)
    with contextlib.ExitStack() as stack:
        if config or (base_url == DEFAULT_BASE_URL and not connection.is_alive()):
            connection = Connection(stack.enter_context(own_server(config)), api_key)
        connection.call("GET", "/health/readiness")
        click.secho(f"connected to {connection.base_url}; /help lists what you can say", dim=True)
        _talk(_Session(connection, model, system, options))

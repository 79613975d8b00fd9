"""The command line. Each command is loaded when it is called, so that `--help` costs next to nothing."""

from __future__ import annotations

from importlib import import_module

import click

from .. import __version__

__all__ = ["main"]

# command -> (module, one line of help). The help stands here so that listing commands imports none of them.
_COMMANDS = {
    "adapters": ("adapters", "List, show and compare adapter versions, or roll one back."),
    "bench": ("bench", "Measure the kernels here, or a running server."),
    "capacity": ("capacity", "Forecast the disk and memory that learning takes for so many users."),
    "chat": ("chat", "Talk to a model that learns from you."),
    "export": ("export", "Write a learned adapter as a PEFT LoRA that other servers take."),
    "freeze": ("learning", "Stop publishing new adapter versions."),
    "keys": ("keys", "Hash an API key for the configuration."),
    "memory": ("memory", "List, share or delete remembered corrections."),
    "models": ("models", "Fetch the default model; build the embedding table."),
    "route": ("route", "Show which model a query would go to, and why."),
    "serve": ("serve", "Start the proxy."),
    "state": ("state", "Back up, restore or verify what was learned."),
    "thaw": ("learning", "Publish new adapter versions again."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"sona_stream.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sona-stream")
def main() -> None:
    """A routing, learning proxy in front of language models.

    Start with `sona-stream serve`, then talk to it with any OpenAI client or `sona-stream chat`.
    """

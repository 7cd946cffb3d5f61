"""The entry point: lists commands without importing them, and turns errors into one line."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from demur.core.errors import DemurError
from demur.core.registry import import_named

COMMANDS = (
    "demo",
    "chat",
    "check",
    "reply",
    "serve",
    "capture",
    "fit",
    "label",
    "train",
    "calibrate",
    "adopt",
    "audit",
    "evaluate",
    "study",
    "reproduce",
    "config",
    "datasets",
    "list",
)

EPILOG = """
Examples:

  demur demo                                       see the guard at work on the embedded model

  demur check "How do I kill a Python process?"    score one prompt

  demur check --input prompts.jsonl --output verdicts.jsonl

  demur fit --data labelled.jsonl --out my-detector
"""


def _summary(command: str) -> str:
    """Return the first line of a command's file, without importing it."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


class Commands(TyperGroup):
    """Knows the commands by name; each is imported when it is called."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return the names, in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in with a name and a summary, for help pages."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, help=_summary(cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the real command."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if stand_in is None or name is None:
            return name, stand_in, rest
        return name, typer.main.get_command(import_named(f"demur.cli.{name}").app), rest


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    epilog=EPILOG,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def demur() -> None:
    """Guard an open-weight chat model by reading what it already knows."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of demur's own end in exit code 2, of the system in 1."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="demur")
    except DemurError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)

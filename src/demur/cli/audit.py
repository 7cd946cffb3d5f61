"""Check an audit log of the server, or remove texts that were kept for long enough."""

import json
from pathlib import Path
from typing import Annotated

import typer

from demur.cli import _options as options
from demur.serving import audit as log
from demur.serving.audit_verification import Verification
from demur.serving.audit_verification import verify as verified

EXIT_BROKEN = 4
"""The log is not what was written."""

app = typer.Typer(add_completion=False, no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The audit log; its head file lies beside it.")]


@app.callback()
def audit() -> None:
    """Check an audit log of the server, or remove texts that were kept for long enough.

    Example: demur audit verify audit.jsonl
    """


@app.command()
def verify(
    file: File,
    *,
    head: Annotated[
        str | None, typer.Option("--head", help="The hash of a line, kept elsewhere.")
    ] = None,
    json_lines: options.Json = False,
) -> None:
    """Say whether any line of an audit log was edited, dropped, added or reordered.

    Exit code 4 if so, with the first such line. With --head, a line with that hash must be there:
    that proves all lines before it, also against somebody who can write the log and its head file.

    Example: demur audit verify audit.jsonl --head 0f3a...
    """
    found = verified(file, known_hash=head)
    typer.echo(json.dumps(found.as_dict()) if json_lines else _words(file, found))
    if not found.is_valid:
        raise typer.Exit(EXIT_BROKEN)


@app.command()
def prune(
    file: File,
    *,
    days: Annotated[
        float | None,
        typer.Option("--days", help="How long texts may be kept; else what the log itself says."),
    ] = None,
) -> None:
    """Remove texts that were kept for long enough from a log that no server writes.

    The lines stay, and the log stays valid. A server prunes the log that it writes by itself.

    Example: demur audit prune audit.jsonl --days 30
    """
    typer.echo(f"{file}: {log.prune(file, days=days)} texts removed")


def _words(file: Path, found: Verification) -> str:
    """Return what was found, for people."""
    lines = [
        f"{file}: {found.num_lines} lines, {found.first_time} to {found.last_time}"
        + (", and more are being written" if found.is_live else ""),
        f"texts: {found.num_texts} kept, {found.num_texts_pruned} pruned, "
        f"{found.num_texts_edited} edited",
        f"hash of the last line: {found.head}",
    ]
    if found.num_recoveries:
        lines.append(f"opened {found.num_recoveries} times after it had not been closed properly")
    if found.num_lines_after_known is not None:
        lines.append(f"lines after the one with the given hash: {found.num_lines_after_known}")
    problem = found.problem
    lines.append("valid" if problem is None else f"broken: line {problem.line}: {problem.what}")
    return "\n".join(lines)

"""What commands do alike: read input, load a guard, write rows, and show verdicts."""

import codecs
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

import demur
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.types import Chat, Dtype
from demur.datasets.rows import Row, read_rows
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.packaged import PACKAGED
from demur.workflows.capture import Progress as Captured
from demur.workflows.capture import Report
from demur.workflows.output import ResumableOutput

EXIT_UNSCORED = 3
"""The run is complete, but some rows could not be scored."""

OutputRow = dict[str, Any]
Answer = Callable[[Iterable[Row]], Iterator[OutputRow]]

stderr = Console(stderr=True)


def read_input(text: str | None, path: Path | None) -> tuple[list[Row], str]:
    """Return the rows to work on and a hash of where they came from.

    Raises:
        ConfigError: Neither a text nor a file was given, or both.
        DataError: The input is broken; the message holds the line's number.
    """
    if (text is None) == (path is None):
        raise ConfigError("give either a TEXT or --input FILE")
    if text == "-" or path == Path("-"):
        content = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
        if path is None and not content.lstrip().startswith(b"{"):
            return [_text_row(decoded(content))], _hash(content)
        return read_rows(io.BytesIO(content)), _hash(content)
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        return read_rows(path), _hash(path.read_bytes())
    assert text is not None
    return [_text_row(text)], _hash(text.encode())


def decoded(content: bytes) -> str:
    """Return a text that came from standard input.

    Raises:
        DataError: It is no valid UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} of standard input is no valid UTF-8: convert it to UTF-8"
        ) from error


def _text_row(text: str) -> Row:
    return Row(1, "1", Example("1", Chat.from_text(text)), None)


def refuse_overwriting(input_path: Path | None, output: Path | None) -> None:
    """Refuse an output that is the input.

    Raises:
        ConfigError: It is.
    """
    if input_path is not None and output is not None and input_path.resolve() == output.resolve():
        raise ConfigError(f"--output {output} is the input: name another file")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load_engine(model: str, dtype: str, *, max_batch: int = 8) -> TransformersEngine:
    """Load a model, with a note on standard error: the first time takes a while."""
    with stderr.status(f"loading {escape(model)}"):
        return TransformersEngine.load(model, dtype=cast(Dtype, dtype), max_batch=max_batch)


def load_guard(
    engine: TransformersEngine,
    detectors: Sequence[str] | None,
    *,
    fpr: float | None,
    responder: str = PACKAGED,
) -> Guard:
    """Load detectors for an engine's model."""
    return Guard.load(
        engine, detectors=tuple(detectors or ("pretrained",)), responder=responder, fpr=fpr
    )


def manifest(
    command: str,
    input_hash: str,
    engine: TransformersEngine,
    guard: Guard | None,
    **options: object,
) -> dict[str, object]:
    """Return what an output depends on."""
    return {
        "command": command,
        "demur": demur.__version__,
        "input": input_hash,
        "model": engine.model_id.as_dict(),
        "detectors": [[d.name, d.version, d.threshold] for d in guard.detectors] if guard else None,
        "options": options,
    }


def run_rows(
    rows: Sequence[Row], answer: Answer, *, output: Path, depends_on: dict[str, object]
) -> None:
    """Work through rows into a resumable file, with a progress bar.

    Raises:
        typer.Exit: Some rows could not be scored (exit code 3).
    """
    num_failed = 0
    with ResumableOutput(output, depends_on) as out:
        if out.num_done:
            stderr.print(f"{out.num_done} of {len(rows)} rows are done already: going on")
        with row_progress() as bar:
            task = bar.add_task("prompts", total=len(rows), completed=out.num_done)
            for row in answer(rows[out.num_done :]):
                out.write(row)
                bar.advance(task)
    with output.open("rb") as lines:
        num_failed = sum(json.loads(line).get("error") is not None for line in lines)
    if num_failed:
        stderr.print(f"{num_failed} of {len(rows)} rows could not be scored: see their 'error'")
        raise typer.Exit(EXIT_UNSCORED)


def print_rows(rows: Iterable[OutputRow], show: Callable[[OutputRow], Text]) -> None:
    """Print rows as they come, as JSON or for people.

    Raises:
        typer.Exit: Some rows could not be scored (exit code 3).
    """
    num_failed = 0
    console = Console()
    for row in rows:
        num_failed += row.get("error") is not None
        console.print(show(row), soft_wrap=True)
    if num_failed:
        raise typer.Exit(EXIT_UNSCORED)


def as_json(row: OutputRow) -> Text:
    """Show a row for machines."""
    return Text(json.dumps(row, ensure_ascii=False))


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an option such as `9,13,17`.

    Raises:
        ConfigError: The text holds something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--layers is {text!r}: expected numbers such as 9,13,17") from None


@contextmanager
def capture_progress() -> Iterator[Report]:
    """Show a bar with prompts and tokens a second and the time left; warnings are one line each."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task("reading prompts", total=None, rates="")

        def report(done: Captured) -> None:
            bar.update(task, total=done.num_tokens, completed=done.tokens_done, rates=done.rates)

        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield report


def _show_warning(message: Warning | str, *_place: object, **_more: object) -> None:
    stderr.print(f"warning: {escape(str(message))}")


def row_progress() -> Progress:
    """Return a bar that counts rows."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
    )


def score_bar(probability: float | None, *, is_flagged: bool, width: int = 10) -> Text:
    """Draw a probability as a bar: red if its prompt is flagged, else green."""
    if probability is None:
        return Text("?" * width, style="red")
    filled = round(probability * width)
    bar = Text("█" * filled, style="red" if is_flagged else "green")
    return bar + Text("░" * (width - filled), style="dim")

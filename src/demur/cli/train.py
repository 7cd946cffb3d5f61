"""Train a responder: what answers flagged prompts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from demur.cli import _options as options
from demur.cli._parameters import parameters as parse_parameters
from demur.cli._session import stderr
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.folders import require_replaceable
from demur.core.registry import load
from demur.core.training import Progress as Trained
from demur.core.training import Report, Run, Trainer
from demur.core.types import Dtype
from demur.datasets import jsonl
from demur.workflows import train as training

app = typer.Typer(add_completion=False)

PACKAGED = ("written", "starter", "replies", "pairs")
"""Sets that ship, by name; their training prompts are taken."""


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="TRAINER", help="See demur list.")],
    out: Annotated[Path, typer.Option("--out", help="The artifact's folder.")],
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help=f"Labelled JSON lines, or {', '.join(PACKAGED)}; may be repeated."
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Of the trainer, as NAME=VALUE; may be repeated."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Of adapters: blocks such as 9,13 or 12-29.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Of adapters.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Of the optimiser.")] = None,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
) -> None:
    """Train a responder on labelled prompts, by default on a set that was written for demur.

    What it writes is loaded with --responder METHOD:FOLDER wherever a responder is named. A long
    training that was stopped goes on when the same command is given again.

    Example: demur train steering --out my-vectors

    Example: demur train refusal_head --data labelled.jsonl -p epochs=3 --out my-head

    Example: demur train sft --layers 12-29 --rank 8 --steps 200 --out my-adapter
    """
    named = {"layers": None if layers is None else blocks(layers), "rank": rank, "steps": steps}
    given = [f"{field}={value}" for field, value in named.items() if value is not None]
    trainer = made(name, [*(parameter or []), *given])
    require_replaceable(out)
    sources = dict.fromkeys([*(data or trainer.learns_from), *trainer.packaged])
    examples = [example for source in sources for example in _rows(source)]
    with _progress() as report:
        run = Run(model, cast(Dtype, dtype), seed=seed, report=report)
        outcome = training.train(trainer, examples, run, out)
    for metric, value in outcome.metrics.items():
        stderr.print(f"{escape(metric)}: {value:.4g}", highlight=False)
    line = f"{trainer.makes}:{out}"
    stderr.print(f"use it with --responder {escape(line)}", highlight=False, soft_wrap=True)


def blocks(text: str) -> list[int]:
    """Return the blocks of an option such as `9,13` or `12-29`, both ends included.

    Raises:
        ConfigError: The text holds something else.

    >>> blocks("3,12-14,-1")
    [3, 12, 13, 14, -1]
    """
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if ends is None:
            raise ConfigError(f"--layers is {text!r}: expected blocks such as 9,13 or 12-29")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise ConfigError(f"--layers is {text!r}: {last} comes before {first}")
        found += range(first, last + 1)
    return found


def made(name: str, given: list[str]) -> Trainer:
    """Return a trainer with the parameters that the user gave.

    Raises:
        ConfigError: There is no such trainer, or a parameter is malformed or unknown.
    """
    method: type[Any] = load("trainers", name)
    values = parse_parameters(given, [field.name for field in fields(method)])
    try:
        trainer: Trainer = method(**values)
    except TypeError as error:
        raise ConfigError(f"--parameter {' '.join(given)}: {error}") from error
    return trainer


def _rows(source: str) -> list[Example]:
    """Return the rows of a file, or the training prompts of a packaged set.

    Raises:
        ConfigError: There is no such file or set.
    """
    if source in PACKAGED and not Path(source).exists():
        rows: list[Example] = load("datasets", source)("train")
        return rows
    if not Path(source).is_file():
        raise ConfigError(
            f"there is no file {source}: expected labelled JSON lines, or one of {PACKAGED}"
        )
    return jsonl.load(Path(source))


@contextmanager
def _progress() -> Iterator[Report]:
    """Show a bar with the stage, the loss, tokens a second and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as bar:
        tasks: dict[str, Any] = {}

        def report(now: Trained) -> None:
            if now.stage not in tasks:
                tasks[now.stage] = bar.add_task(now.stage, total=now.total, rates="")
            task = tasks[now.stage]
            elapsed = bar.tasks[task].elapsed or 0.0
            rates = f"{now.num_tokens / elapsed:.0f} tokens/s" if elapsed and now.num_tokens else ""
            if now.loss is not None:
                rates = f"loss {now.loss:.3f} {rates}"
            bar.update(task, total=now.total, completed=now.done, rates=rates)

        yield report

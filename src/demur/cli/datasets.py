"""Rebuild the research collection of public prompt sets from its sources."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from demur.core.errors import ConfigError
from demur.workflows.build_datasets import CACHE, Builder, Outcome, Report
from demur.workflows.sources import Checkouts, Sources, Web

EXIT_REFUSED = 3
"""The run is complete, but some sets could not be built."""

app = typer.Typer(add_completion=False, no_args_is_help=True)
stderr = Console(stderr=True)


@app.callback()
def datasets() -> None:
    """Rebuild the research collection of public prompt sets from its sources.

    Example: demur datasets build --out ~/demur-data
    """


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="The folder to write; name it in DEMUR_DATA.")],
    *,
    from_folder: Annotated[
        Path | None,
        typer.Option("--from", help="Checkouts of the repositories, in folders OWNER__NAME."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="One set by name; may be repeated.")
    ] = None,
) -> None:
    """Fetch public sets at pinned commits and write them in one form, with their fixed splits.

    The texts come from the sources; ids, groups and splits are part of demur. Each set is checked
    against a hash. Some texts are vile: they are research data. Sets without a stated licence are
    left out. A second run goes on where the first one ended.

    Example: demur datasets build --out ~/demur-data

    Example: demur datasets build --from ~/checkouts --only xstest --out ~/demur-data
    """
    if from_folder is not None and not from_folder.is_dir():
        raise ConfigError(f"--from {from_folder} is no folder")
    sources: Sources = Checkouts(from_folder) if from_folder is not None else Web(out / CACHE)
    with _progress() as report:
        outcome = Builder(out, sources).build(only or (), report=report)
    _tell(outcome, out)
    if outcome.refused:
        raise typer.Exit(EXIT_REFUSED)


@contextmanager
def _progress() -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr) as bar:
        task = bar.add_task("data sets", total=None)

        def report(name: str, num_done: int, num_sets: int) -> None:
            bar.update(task, description=name or "data sets", total=num_sets, completed=num_done)

        yield report


def _tell(outcome: Outcome, out: Path) -> None:
    for names, what in (
        (outcome.unlicensed, "left out, no licence is stated"),
        (outcome.without_recipe, "no recipe yet"),
    ):
        if names:
            _say(f"{what}: {', '.join(names)}")
    for name, reason in outcome.refused.items():
        _say(f"refused {name}: {reason}")
    ready = len(outcome.built) + len(outcome.unchanged)
    _say(f"{out}: {ready} sets, of which {len(outcome.unchanged)} lay there already")


def _say(line: str) -> None:
    stderr.print(escape(line), soft_wrap=True, highlight=False)

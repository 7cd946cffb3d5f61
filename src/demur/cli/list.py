"""List the methods: detectors, responders, scorers, data sets and the other kinds."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from demur.core.registry import KINDS, methods

app = typer.Typer(add_completion=False)


@app.command()
def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for machines.")] = False,
) -> None:
    """List the methods of each kind, with a line on each.

    Example: demur list --json
    """
    if as_json:
        found = {kind: [asdict(m) for m in methods(kind).values()] for kind in KINDS}
        print(json.dumps(found, indent=2))
        return
    console = Console()
    for kind in KINDS:
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        for method in methods(kind).values():
            table.add_row(f"  [bold]{method.name}[/bold]", method.summary)
        console.print(table)

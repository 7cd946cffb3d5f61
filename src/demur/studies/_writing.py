"""Writes a study's answer into a folder: its numbers, its page and its pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from demur.core.folders import write_synced
from demur.core.registry import import_named
from demur.studies._study import StudyResult, shown


def write(result: StudyResult, out: Path, *, about: Mapping[str, object] | None = None) -> None:
    """Write `results.json`, `table.md` and a picture a plot into a folder.

    Args:
        result: Of a study.
        out: The folder; it is made, and files of these names in it are replaced.
        about: What the result depends on, for `results.json`.

    Raises:
        MissingPackageError: matplotlib is not installed; the numbers are written all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    content = {"about": dict(about or {}), **asdict(result)}
    write_synced(out / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    write_synced(out / "table.md", as_markdown(result).encode())
    if result.plots:
        import_named("demur.studies._pictures").draw(result.plots, out)


def as_markdown(result: StudyResult) -> str:
    """Return a result as a page: question, findings, table, pictures."""
    lines = [f"# {result.title}", "", result.question, ""]
    lines += [f"- {finding}" for finding in result.findings]
    lines += ["", table_line(result.columns), table_line(["---"] * len(result.columns))]
    lines += [table_line([shown(cell) for cell in row.values()]) for row in result.rows]
    for plot in result.plots:
        lines += ["", f"![{plot.title}]({plot.name}.png)"]
    return "\n".join(lines) + "\n"


def table_line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

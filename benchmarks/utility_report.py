"""Writes what `benchmarks.utility` measured as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from demur.studies._study import Row

COLUMNS = ("set", "arm", "questions", "right", "chance", "change", "perplexity", "ratio")


def report(result: Mapping[str, Any]) -> str:
    """Return the page."""
    rows: Sequence[Row] = result["rows"]
    machine = result["machine"]
    gate = f" `gated`: only where `{result['detector']}` flags." if result["detector"] else ""
    lines = [
        f"# Utility of {result['model']}",
        "",
        f"Made by `python -m benchmarks.utility` on {machine['processor']}, {machine['cores']} "
        f"cores, in {result['seconds'] / 60:.0f} minutes, on {result['share']:.0%} of the "
        "questions. `right` is the share of questions whose right answer is the likeliest of the "
        "options; perplexity is that of the right answer's tokens, averaged over questions. In "
        "brackets are 95% intervals; changes and ratios are paired, against the model by "
        f"itself. `always`: the responder is on for every question.{gate}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
        *map(_line, rows),
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    has_choice = "right" in row
    cells = [
        str(row["set"]),
        f"`{row['arm']}`",
        str(row["questions"]),
        f"{row['right']:.1%} {_interval(row, 'right', 100)}" if has_choice else "",
        f"{row['chance']:.0%}" if has_choice else "",
        f"{100 * float(row['right_change'] or 0):+.1f} {_interval(row, 'right_change', 100)}"
        if has_choice
        else "",
        f"{row['perplexity']:.2f}",
        f"{row['perplexity_ratio']:.3f} {_interval(row, 'perplexity_ratio', 1)}",
    ]
    return f"| {' | '.join(cells)} |"


def _interval(row: Row, name: str, factor: int) -> str:
    """Return an interval in brackets: in percent or points, or as it is."""
    low, high = (factor * float(row[f"{name}_{end}"] or 0) for end in ("low", "high"))
    digits = 1 if factor > 1 else 3
    return f"({low:.{digits}f} to {high:.{digits}f})"

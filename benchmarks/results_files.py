"""Keeps what a benchmark found: figures as JSON, and a page that shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demur.core.folders import write_synced

RESULTS = Path(__file__).parent / "results"


def keep(
    name: str,
    results: Mapping[str, Any],
    page: str,
    *,
    folder: Path = RESULTS,
    prints_json: bool = False,
) -> None:
    """Write NAME.json and NAME.md, and print one of the two.

    Args:
        name: Of the benchmark.
        results: What JSON can hold.
        page: In Markdown.
        folder: For both files; it is made.
        prints_json: Print the figures, not the page.
    """
    figures = json.dumps(results, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(folder / f"{name}.json", figures.encode())
    write_synced(folder / f"{name}.md", page.encode())
    print(figures if prints_json else page)

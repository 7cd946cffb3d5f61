"""Writes the index of a model's studies as Markdown, from the results in their folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]


def index(folder: Path) -> str:
    """Return a page with the findings of all studies of one model.

    Args:
        folder: Holds a folder with `results.json` for each study.
    """
    paths = sorted(folder.glob("*/results.json"))
    lines = [f"# Studies of {folder.name}", ""]
    for path in paths:
        found = json.loads(path.read_bytes())
        lines += _section(path.parent.name, found)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, found: Found) -> list[str]:
    return [
        f"## {found['title']}",
        "",
        f"{found['question']} [Table and pictures]({name}/table.md)",
        "",
        *(f"- {finding}" for finding in found["findings"]),
        "",
        _made_on(found["about"]),
        "",
    ]


def _made_on(about: Found) -> str:
    """Say what a study was run on, and how long it took."""
    machine, prompts = about["machine"], about["prompts"]
    tests = sum(count for role, count in prompts.items() if role not in ("train", "val"))
    limit = "all prompts" if about["limit"] is None else f"up to {about['limit']} prompts"
    return (
        f"{about['model']['dtype']} on {machine['processor']}, {machine['cores']} cores; {limit} "
        f"of a source and label: {prompts['train']:,} to fit, {prompts['val']:,} to choose and "
        f"{tests:,} to test; {len(about['seeds'])} seeds; {about['seconds']:,.0f} s, reading "
        "included where the prompts were not on disk."
    )

"""HarmBench: harmful behaviours of the test split, the standard and the copyright ones.

All are unsafe, so that only recall can be measured. Contextual behaviours, which need a text beside
them, are left out. The category is the semantic one, the kind the functional one. The copies on
the hub do not tell the test split, so the file comes from the publishers' repository.

Paper: HarmBench (Mazeika et al., 2024), arXiv 2402.04249.
"""

from pathlib import Path
from typing import Literal

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.datasets._hub import (
    Expected,
    Part,
    Prompt,
    Row,
    part_of,
    read_rows,
    text_of,
    to_examples,
)

__all__ = ["load"]

NEEDS = ("datasets",)

NAME = "harmbench"
REPO = "centerforaisafety/HarmBench"
REVISION = "main"
FILE = "data/behavior_datasets/harmbench_behaviors_text_test.csv"
PARTS = {
    "test": Part(
        REPO,
        REVISION,
        "test",
        (FILE, "*harmbench_behaviors_text_test*", "*/harmbench_behaviors_text_test*"),
        ("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"),
        delimiter=",",
        url=f"https://raw.githubusercontent.com/{REPO}/{REVISION}/{FILE}",
    )
}
EXPECTED = {"test": Expected(239, unsafe=239)}


def load(
    source: Path | None = None,
    *,
    split: Literal["test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the behaviours.

    Args:
        source: A folder with the publishers' file, or the file; None is their repository.
        split: `test`, the only one.
        check_counts: Refuse another size than the published one.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The file cannot be read, or its counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    expected = EXPECTED[split] if check_counts else None
    return to_examples(NAME, split, read_rows(part, source), _prompt, part=part, expected=expected)


def _prompt(row: Row) -> Prompt | None:
    kind = text_of(row, "FunctionalCategory")
    if kind not in ("standard", "copyright", "contextual"):
        raise DataError(
            f"FunctionalCategory is {kind!r}: expected 'standard', 'copyright' or 'contextual'"
        )
    if kind == "contextual":
        return None
    return Prompt(
        text_of(row, "Behavior"),
        "unsafe",
        id=text_of(row, "BehaviorID"),
        category=text_of(row, "SemanticCategory"),
        kind=kind,
    )

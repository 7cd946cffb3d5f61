"""SimpleSafetyTests: 100 plainly unsafe requests in five areas of harm.

All are unsafe, so that only recall can be measured. The category is the area of harm.

Paper: SimpleSafetyTests (Vidgen et al., 2023), arXiv 2311.08370.
"""

from pathlib import Path
from typing import Literal

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

NAME = "simple_safety_tests"
REPO = "Bertievidgen/SimpleSafetyTests"
REVISION = "98223c5d8c4059c8f4d8fe2fec8720ee8a20d3c5"
PARTS = {
    "test": Part(
        REPO,
        REVISION,
        "test",
        ("sst_test_cases*", "*/sst_test_cases*"),
        ("id", "harm_area", "category", "prompt"),
        delimiter=",",
    )
}
EXPECTED = {"test": Expected(100, unsafe=100)}


def load(
    source: Path | None = None,
    *,
    split: Literal["test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the requests.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `test`, the only one.
        check_counts: Refuse another size than the published one.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    expected = EXPECTED[split] if check_counts else None
    return to_examples(NAME, split, read_rows(part, source), _prompt, part=part, expected=expected)


def _prompt(row: Row) -> Prompt:
    return Prompt(
        text_of(row, "prompt"),
        "unsafe",
        id=text_of(row, "id"),
        category=text_of(row, "harm_area"),
        kind=text_of(row, "category"),
    )

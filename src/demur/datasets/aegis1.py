"""Aegis 1.0: requests and dialogues, each marked by several annotators.

Safe needs two of the first three annotators to say exactly `Safe`; `Needs Caution` counts as
unsafe. The test split keeps user messages only, the training split all types of text, as they
stand. The category is what the three named most often besides `Safe`.

Paper: AEGIS (Ghosh et al., 2024), arXiv 2404.05993.
"""

from collections import Counter
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

NAME = "aegis1"
REPO = "nvidia/Aegis-AI-Content-Safety-Dataset-1.0"
REVISION = "main"
ANNOTATIONS = ("labels_0", "labels_1", "labels_2")
PARTS = {
    split: Part(
        REPO,
        REVISION,
        split,
        (f"*_{split}_*", f"{split}*", f"*/{split}*"),
        ("text", "text_type", *ANNOTATIONS),
    )
    for split in ("train", "test")
}
EXPECTED = {"test": Expected(359, unsafe=233)}


def load(
    source: Path | None = None,
    *,
    split: Literal["train", "test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts of a split.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `train` or `test`; no counts are published of `train`.
        check_counts: Refuse a split of another size than the published one.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    expected = EXPECTED.get(split) if check_counts else None
    rows = read_rows(part, source)
    read = _user_message if split == "test" else _prompt
    return to_examples(NAME, split, rows, read, part=part, expected=expected)


def _user_message(row: Row) -> Prompt | None:
    return _prompt(row) if row["text_type"] == "user_message" else None


def _prompt(row: Row) -> Prompt:
    annotations = [text_of(row, column) for column in ANNOTATIONS]
    is_safe = annotations.count("Safe") >= 2
    named = Counter(
        category
        for annotation in annotations
        for category in (annotation or "").split(", ")
        if category not in ("", "Safe", "None")
    )
    return Prompt(
        text_of(row, "text"),
        "safe" if is_safe else "unsafe",
        category=None if is_safe or not named else named.most_common(1)[0][0],
        kind=text_of(row, "text_type"),
    )

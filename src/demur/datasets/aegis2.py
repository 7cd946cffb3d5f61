"""Aegis 2.0: requests with a label by people, many with a model's response and its label.

Unsafe is `prompt_label == "unsafe"`. Rows whose text the publishers may not hand on (`REDACTED`, to
be filled in from a set about suicide) are left out. The category is the first violated one, which
the most annotators named. `train` and `validation` hold the made-up refusals too, as on the hub.

Paper: AEGIS2.0 (Ghosh et al., NAACL 2025).

Differs: the evaluation of arXiv 2502.16174 filled the redacted rows in.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._hub import (
    Part,
    Prompt,
    Row,
    label_of,
    part_of,
    read_rows,
    required,
    text_of,
    to_examples,
)

__all__ = ["load"]

NEEDS = ("datasets",)

NAME = "aegis2"
REPO = "nvidia/Aegis-AI-Content-Safety-Dataset-2.0"
REVISION = "main"
PARTS = {
    split: Part(
        REPO,
        REVISION,
        split,
        files,
        (
            "id",
            "reconstruction_id_if_redacted",
            "prompt",
            "response",
            "prompt_label",
            "response_label",
            "violated_categories",
        ),
    )
    for split, files in {
        "train": ("*train.*", "*/train*"),
        "validation": ("*validation.*", "*/validation*"),
        "test": ("test.*", "*/test*"),
    }.items()
}


def load(
    source: Path | None = None,
    *,
    split: Literal["train", "validation", "test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts of a split; those with the same id in the set are a group.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `train`, `validation` or `test`.
        check_counts: As in the other sets; no counts without the redacted rows are published, so
            that there is nothing to check.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The files cannot be read.
    """
    part = part_of(NAME, PARTS, split)
    return to_examples(NAME, split, read_rows(part, source), _prompt, part=part)


def _prompt(row: Row) -> Prompt | None:
    text = text_of(row, "prompt")
    if text == "REDACTED" or text_of(row, "reconstruction_id_if_redacted") is not None:
        return None
    label = label_of(row, "prompt_label", unsafe="unsafe", safe="safe")
    response_label = label_of(row, "response_label", unsafe="unsafe", safe="safe")
    categories = text_of(row, "violated_categories") or ""
    return Prompt(
        text,
        required(label, "prompt_label"),
        group=text_of(row, "id"),
        category=categories.split(",")[0].strip() or None,
        # Of a prompt alone both are null; a response that is empty still has its label.
        response=None if response_label is None else text_of(row, "response") or "",
        response_label=response_label,
    )

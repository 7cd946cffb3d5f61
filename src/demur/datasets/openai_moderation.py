"""OpenAI's moderation evaluation set: 1,680 texts with eight flags, not all of them requests.

Unsafe is any of the eight flags; a flag that was not annotated counts as not set. The category is
the first flag that is set: S sexual, H hate, V violence, HR harassment, SH self-harm, S3 sexual
with minors, H2 hateful threats, V2 graphic violence.

Paper: A Holistic Approach to Undesired Content Detection (Markov et al., 2022), arXiv 2208.03274.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._hub import (
    Expected,
    Part,
    Prompt,
    Row,
    flag_of,
    part_of,
    read_rows,
    text_of,
    to_examples,
)

__all__ = ["load"]

NEEDS = ("datasets",)

NAME = "openai_moderation"
REPO = "mmathys/openai-moderation-api-evaluation"
REVISION = "84e5cf3bcd6acb3dfc70b6760451645872218a3e"
CATEGORIES = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
PARTS = {
    "test": Part(
        REPO,
        REVISION,
        "train",  # the hub's name for a set of one split
        ("samples-1680*", "*/samples-1680*"),
        ("prompt", *CATEGORIES),
    )
}
EXPECTED = {"test": Expected(1_680, unsafe=522)}


def load(
    source: Path | None = None,
    *,
    split: Literal["test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the texts.

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
    flagged = [column for column in CATEGORIES if flag_of(row, column, missing=False)]
    return Prompt(
        text_of(row, "prompt"),
        "unsafe" if flagged else "safe",
        category=flagged[0] if flagged else None,
    )

"""ToxicChat, version 0124: what users really asked a chat model, marked toxic or not.

Unsafe is `toxicity == 1`; a jailbreak is told by its kind and need not be unsafe. The test split is
by default the part that people annotated, the rest was labelled by a classifier; the training split
is whole.

Paper: ToxicChat (Lin et al., 2023), arXiv 2310.17389.
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

NAME = "toxicchat"
REPO = "lmsys/toxic-chat"
REVISION = "3e0319203c7162b9c9f8015b594441f979c199bc"
COLUMNS = ("user_input", "model_output", "human_annotation", "toxicity", "jailbreaking")
PARTS = {
    split: Part(
        REPO,
        REVISION,
        split,
        (f"data/0124/toxic-chat_annotation_{split}*", f"toxic-chat_annotation_{split}*"),
        COLUMNS,
        config="toxicchat0124",
        delimiter=",",
    )
    for split in ("train", "test")
}
EXPECTED = {("test", True): Expected(2_853, unsafe=362)}


def load(
    source: Path | None = None,
    *,
    split: Literal["train", "test"] = "test",
    human_annotated: bool | None = None,
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts of a split.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `train` or `test`.
        human_annotated: Only the rows that people annotated; None is so for `test` alone.
        check_counts: Refuse another size than the published one, which is that of the annotated
            rows of `test`.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    only_human = split == "test" if human_annotated is None else human_annotated

    def read(row: Row) -> Prompt | None:
        if only_human and not flag_of(row, "human_annotation"):
            return None
        return Prompt(
            text_of(row, "user_input"),
            "unsafe" if flag_of(row, "toxicity") else "safe",
            kind="jailbreak" if flag_of(row, "jailbreaking") else None,
            response=text_of(row, "model_output"),
        )

    expected = EXPECTED.get((split, only_human)) if check_counts else None
    return to_examples(NAME, split, read_rows(part, source), read, part=part, expected=expected)

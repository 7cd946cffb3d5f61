"""WildGuardMix: synthetic and real requests, plain and as jailbreaks, with a harm label each.

Unsafe is `prompt_harm_label == "harmful"`; rows without that label are left out. Only the user's
turn is the prompt; the response, where there is one, keeps its own label. The category is the
set's `subcategory`. The set is gated: accept its terms first.

Paper: WildGuard (Han et al., 2024), arXiv 2406.18495.
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
    label_of,
    part_of,
    read_rows,
    text_of,
    to_examples,
)

__all__ = ["load"]

NEEDS = ("datasets",)

NAME = "wildguardmix"
REPO = "allenai/wildguardmix"
REVISION = "d29c47f41c8b51348b5c8e8c81c039b3132b66d1"
COLUMNS = (
    "prompt",
    "adversarial",
    "response",
    "prompt_harm_label",
    "response_harm_label",
    "subcategory",
)
PARTS = {
    "train": Part(
        REPO,
        REVISION,
        "train",
        ("train/wildguard_train*", "wildguard_train*"),
        COLUMNS,
        config="wildguardtrain",
    ),
    "test": Part(
        REPO,
        REVISION,
        "test",
        ("test/wildguard_test*", "wildguard_test*"),
        COLUMNS,
        config="wildguardtest",
    ),
}
EXPECTED = {"train": Expected(86_759), "test": Expected(1_699, unsafe=754)}


def load(
    source: Path | None = None,
    *,
    split: Literal["train", "test"] = "test",
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts of a split.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `train` or `test`.
        check_counts: Refuse a split of another size than the published one.

    Raises:
        ConfigError: There is no such split, file or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    expected = EXPECTED[split] if check_counts else None
    return to_examples(NAME, split, read_rows(part, source), _prompt, part=part, expected=expected)


def _prompt(row: Row) -> Prompt | None:
    label = label_of(row, "prompt_harm_label", unsafe="harmful", safe="unharmful")
    if label is None:
        return None
    response = text_of(row, "response")
    return Prompt(
        text_of(row, "prompt"),
        label,
        category=text_of(row, "subcategory"),
        kind="adversarial" if flag_of(row, "adversarial", missing=False) else "vanilla",
        response=response,
        response_label=None
        if response is None
        else label_of(row, "response_harm_label", unsafe="harmful", safe="unharmful"),
    )

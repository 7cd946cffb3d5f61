"""XSTest: safe requests of a dangerous sound, and unsafe ones of the same shape.

The variant `responses` is XSTest-Response as the papers measure it: 446 of the prompts, each with a
model's response; `prompts` is the original set. Unsafe is what its authors call so. The responses
are gated: accept their terms first.

Paper: XSTest (Röttger et al., 2023), arXiv 2308.01263; the responses: WildGuard (Han et al., 2024),
arXiv 2406.18495.
"""

from pathlib import Path
from typing import Literal

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.datasets._hub import (
    Expected,
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

NAME = "xstest"
REPO = "allenai/xstest-response"
REVISION = "main"
PROMPTS_REPO = "paul-rottger/exaggerated-safety"
PROMPTS_REVISION = "475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5"
PARTS = {
    "responses": Part(
        REPO,
        REVISION,
        "response_harmfulness",
        ("data/response_harmfulness*", "response_harmfulness*"),
        ("prompt", "response", "label", "prompt_type", "prompt_harm_category"),
    ),
    "prompts": Part(
        PROMPTS_REPO,
        PROMPTS_REVISION,
        "test",
        ("xstest_prompts*", "*/xstest_prompts*"),
        ("id", "prompt", "type", "label"),
        delimiter=",",
        url=f"https://raw.githubusercontent.com/{PROMPTS_REPO}/{PROMPTS_REVISION}/xstest_prompts.csv",
    ),
}
EXPECTED = {"responses": Expected(446, unsafe=197), "prompts": Expected(450, unsafe=200)}


def load(
    source: Path | None = None,
    *,
    split: Literal["test"] = "test",
    variant: Literal["responses", "prompts"] = "responses",
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts.

    Args:
        source: A folder with the publishers' files, or one file; None is where they publish them.
        split: `test`, the only one.
        variant: `responses` or `prompts`.
        check_counts: Refuse another size than the published one.

    Raises:
        ConfigError: There is no such split, variant, file or folder.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    if variant not in PARTS:
        raise ConfigError(f"{NAME} has no variant {variant!r}: expected one of {sorted(PARTS)}")
    part = part_of(NAME, {"test": PARTS[variant]}, split)
    expected = EXPECTED[variant] if check_counts else None
    read = _responded if variant == "responses" else _original
    return to_examples(NAME, split, read_rows(part, source), read, part=part, expected=expected)


def _responded(row: Row) -> Prompt:
    label = label_of(row, "prompt_type", unsafe="prompt_harmful", safe="prompt_safe")
    return Prompt(
        text_of(row, "prompt"),
        required(label, "prompt_type"),
        category=text_of(row, "prompt_harm_category"),
        response=text_of(row, "response"),
        response_label=label_of(row, "label", unsafe="harmful", safe="unharmful"),
    )


def _original(row: Row) -> Prompt:
    label = label_of(row, "label", unsafe="unsafe", safe="safe")
    return Prompt(
        text_of(row, "prompt"),
        required(label, "label"),
        id=f"{NAME}-prompts-{row['id']}",
        category=text_of(row, "type"),
    )

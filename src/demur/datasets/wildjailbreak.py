"""WildJailbreak: plain requests and the jailbreaks made of them, harmful and benign.

Unsafe is a harmful `data_type`. The prompt of a training row is its jailbreak, or the plain request
where there is none; requests made of the same plain one are a group. The evaluation split holds
jailbreaks only. The set is gated: accept its terms first.

Paper: WildTeaming at Scale (Jiang et al., 2024), arXiv 2406.18510.
"""

import hashlib
import random
from pathlib import Path
from typing import Literal

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
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

NAME = "wildjailbreak"
REPO = "allenai/wildjailbreak"
REVISION = "main"
PARTS = {
    "train": Part(
        REPO,
        REVISION,
        "train",
        ("train/train*", "train*"),
        ("vanilla", "adversarial", "completion", "data_type"),
        config="train",
        delimiter="\t",
    ),
    "eval": Part(
        REPO,
        REVISION,
        "train",  # the hub calls the one split of each configuration so
        ("eval/eval*", "eval*"),
        ("adversarial", "data_type"),
        config="eval",
        delimiter="\t",
    ),
}
EXPECTED = {"eval": Expected(2_210, unsafe=2_000)}

LABELS: dict[str | None, Label] = {
    "vanilla_harmful": "unsafe",
    "adversarial_harmful": "unsafe",
    "vanilla_benign": "safe",
    "adversarial_benign": "safe",
}


def load(
    source: Path | None = None,
    *,
    split: Literal["train", "eval"] = "eval",
    num_prompts: int | None = None,
    seed: int = 42,
    check_counts: bool = True,
) -> list[Example]:
    """Return the prompts of a split.

    Args:
        source: A folder with the files of the hub, or one file; None is the hub itself.
        split: `train` or `eval`; no counts are published of `train`.
        num_prompts: Draw so many of them; None is all.
        seed: Of the draw.
        check_counts: Refuse a split of another size than the published one.

    Raises:
        ConfigError: There is no such split, file or folder, or there are fewer prompts to draw.
        DataError: The files cannot be read, or their counts are not the published ones.
    """
    part = part_of(NAME, PARTS, split)
    expected = EXPECTED.get(split) if check_counts else None
    rows = read_rows(part, source)
    examples = to_examples(NAME, split, rows, _prompt, part=part, expected=expected)
    if num_prompts is None:
        return examples
    if not 0 < num_prompts <= len(examples):
        raise ConfigError(f"num_prompts is {num_prompts}: expected 1 to {len(examples)}")
    chosen = sorted(random.Random(seed).sample(range(len(examples)), num_prompts))
    return [examples[number] for number in chosen]


def _prompt(row: Row) -> Prompt:
    data_type = text_of(row, "data_type")
    if data_type not in LABELS:
        raise DataError(f"data_type is {data_type!r}: expected one of {list(LABELS)}")
    vanilla = text_of(row, "vanilla") if "vanilla" in row else None
    adversarial = text_of(row, "adversarial")
    return Prompt(
        adversarial if adversarial and adversarial.strip() else vanilla,
        LABELS[data_type],
        group=None if vanilla is None else hashlib.sha256(vanilla.encode()).hexdigest()[:16],
        kind=data_type,
        response=text_of(row, "completion") if "completion" in row else None,
    )

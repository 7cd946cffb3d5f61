"""Draws the prompts that a training sees, and those that it is judged by."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from demur.core.errors import DataError
from demur.core.examples import Example, targets_of
from demur.core.readings import Array


class Drawn(NamedTuple):
    """Prompts of both labels, equally many; no group is on both sides."""

    train: list[Example]
    held_out: list[Example]


def draw(
    examples: Sequence[Example], *, num_prompts: int, fits: Callable[[Example], bool], seed: int
) -> Drawn:
    """Draw prompts.

    Args:
        examples: Labelled prompts; those that are stated to be in another language than English
            are left out.
        num_prompts: Of each label, on each side.
        fits: Whether a prompt may be drawn; asked for those that would be.
        seed: Of the draw.

    Raises:
        DataError: A prompt has no label, or there are too few of one.
    """
    targets_of(examples)
    by_group: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.language in (None, "en"):
            by_group[example.group_key].append(example)
    groups = [by_group[key] for key in sorted(by_group)]
    drawn = Drawn([], [])
    for turn, group in enumerate(np.random.default_rng(seed).permutation(len(groups)).tolist()):
        side = drawn[turn % 2]
        for example in groups[group]:
            if _count(side, example.label) < num_prompts and fits(example):
                side.append(example)
    for name, side in drawn._asdict().items():
        for label in ("unsafe", "safe"):
            if (found := _count(side, label)) < num_prompts:
                raise DataError(
                    f"{found} {label} prompts could be drawn for {name}: expected {num_prompts}, "
                    "in English and not too long; give more prompts, or lower num_prompts"
                )
    return drawn


def _count(side: Sequence[Example], label: str | None) -> int:
    return sum(example.label == label for example in side)


def rounds(rows: Array, rng: np.random.Generator) -> Iterator[int]:
    """Yield rows in rounds without end, each in an order of its own."""
    while True:
        yield from rng.permutation(rows).tolist()

"""Narrows a range of blocks down to the one that counts most, one end after the other.

Paper: Li et al., Safety Layers in Aligned Large Language Models (ICLR 2025), arXiv 2408.17003, the
progressive adjustment of the range: the upper end is moved with the lower one fixed, and that with
the most refusals is kept; then the lower end in the same way.

Differs: an end is moved by a stated number of blocks at most; of ranges that count alike the one
whose end was moved least is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError
from demur.modeling.gap_curves import Rise


@dataclass(frozen=True, order=True)
class Range:
    """Neighbouring blocks, both ends included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        """Refuse ends that are no range.

        Raises:
            ConfigError: An end is negative, or the last block stands before the first.
        """
        if not 0 <= self.first <= self.last:
            raise ConfigError(
                f"{self.first} to {self.last} is no range of blocks: expected two numbers from 0, "
                "the first one no higher than the last"
            )

    @classmethod
    def parse(cls, text: str, *, num_blocks: int | None = None) -> Self:
        """Return the range that a text names, such as `6-14`.

        Args:
            text: `FROM-TO`, both included; one number is a range of one.
            num_blocks: Of the model; None checks nothing against it.

        Raises:
            ConfigError: The text names no range, or one that the model does not have.

        >>> Range.parse("6-14")
        Range(first=6, last=14)
        """
        ends = [part.strip() for part in text.split("-")]
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ConfigError(
                f"{text!r} names no range of blocks: expected FROM-TO, both included, such as 6-14"
            )
        found = cls(int(ends[0]), int(ends[-1]))
        if num_blocks is not None and found.last >= num_blocks:
            raise ConfigError(
                f"the range {found} does not exist: the model has blocks 0 to {num_blocks - 1}"
            )
        return found

    @property
    def layers(self) -> range:
        """The blocks."""
        return range(self.first, self.last + 1)

    @property
    def width(self) -> int:
        """The number of blocks."""
        return len(self.layers)

    def overlap(self, other: "Range") -> int:
        """Return how many blocks both have."""
        return max(0, min(self.last, other.last) - max(self.first, other.first) + 1)

    def __str__(self) -> str:
        """Return it as `parse` takes it."""
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Search:
    """What a search found."""

    chosen: Range
    counts: Mapping[Range, float]
    """What each range counted that was tried, in the order of the trials."""


def first_guess(rise: Rise | None, *, num_blocks: int) -> Range:
    """Return where a search begins: where the gap grows, or else the middle third of the blocks.

    Args:
        rise: Of the gap; None where it does not grow.
        num_blocks: Of the model.

    >>> str(first_guess(None, num_blocks=24))
    '8-15'
    """
    if rise is not None:
        return Range(rise.first, rise.last)
    return Range(num_blocks // 3, max(num_blocks // 3, 2 * num_blocks // 3 - 1))


def narrow(start: Range, *, num_blocks: int, reach: int, count: Callable[[Range], float]) -> Search:
    """Move the upper end of a range, then the lower one, to where most is counted.

    Args:
        start: A first guess.
        num_blocks: Of the model.
        reach: Blocks by which an end is moved at most, either way, 0 or more.
        count: What is counted with the blocks of a range scaled; called once a range.

    Raises:
        ConfigError: The first guess is out of range.
    """
    if start.last >= num_blocks or reach < 0:
        raise ConfigError(
            f"the search starts at {start} and moves by up to {reach}: expected blocks 0 to "
            f"{num_blocks - 1}, and 0 or more"
        )
    counts: dict[Range, float] = {}

    def best(ranges: list[Range]) -> Range:
        for one in ranges:
            if one not in counts:
                counts[one] = count(one)
        # The least moved stands first, and max keeps the first of equals.
        return max(ranges, key=counts.__getitem__)

    lasts = _near(start.last, reach, start.first, num_blocks - 1)
    upper = best([Range(start.first, last) for last in lasts])
    firsts = _near(start.first, reach, 0, upper.last)
    return Search(best([Range(first, upper.last) for first in firsts]), counts)


def random_ranges(of: Range, *, num_blocks: int, count: int, seed: int) -> list[Range]:
    """Return ranges of the same width that have no block of a range, or as few as there can be.

    Args:
        of: The range that they stand against.
        num_blocks: Of the model.
        count: How many; fewer where there are no more.
        seed: Of the draw.

    Raises:
        ConfigError: The range is as wide as the model, so that there is no other one.
    """
    others = [
        Range(first, first + of.width - 1)
        for first in range(num_blocks - of.width + 1)
        if first != of.first
    ]
    if not others:
        raise ConfigError(
            f"the range {of} has no other one of its width beside it: the model has {num_blocks} "
            "blocks; take a narrower one"
        )
    order = np.random.default_rng(seed).permutation(len(others))
    drawn = sorted((others[row] for row in order), key=of.overlap)  # stable: the draw decides
    return drawn[:count]


def _near(middle: int, reach: int, lowest: int, highest: int) -> list[int]:
    """Return the numbers about one, the nearest first, lower ones before higher ones."""
    near = range(max(lowest, middle - reach), min(highest, middle + reach) + 1)
    return sorted(near, key=lambda number: (abs(number - middle), number))

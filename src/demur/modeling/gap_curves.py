"""Where a model's states tell unsafe from ordinary prompts: cosines and angles, layer by layer.

At each layer the last token's states of two ordinary prompts have a cosine, and so have those of an
ordinary and an unsafe one. The gap is the angle of the mean cosine of mixed pairs less that of like
pairs, in degrees: it is about 0 where the model makes no difference, and grows where it begins to.
All pairs are taken, at once.

Paper: Li et al., Safety Layers in Aligned Large Language Models (ICLR 2025), arXiv 2408.17003, the
analysis of the existence of safety layers: the arccosine of the mean, not the mean of arccosines.

Differs: all pairs, where the paper draws 500 of each kind. Like pairs are those of ordinary prompts
in the paper; against `both` kinds the gap does not depend on which prompts are more varied. The
last layer's state is that before the final norm. Where the curve begins to grow and where it levels
off is read off the drawing there; here a line that is flat, rises and is flat again is fitted to it
by least squares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array

Against = Literal["ordinary", "both"]
LEAST = 2
"""Prompts of each label that pairs are made of."""
MOST_BY_CHANCE = 0.05
"""How likely a gap may be under shuffled labels and still count as one."""


@dataclass(frozen=True)
class Curves:
    """Mean cosines over all pairs of prompts, each [layer]."""

    ordinary: Array
    """Of two ordinary prompts."""
    unsafe: Array
    """Of two unsafe prompts."""
    mixed: Array
    """Of an ordinary and an unsafe prompt."""
    against: Against = "ordinary"
    """Which pairs the mixed ones are compared with."""

    @property
    def gap(self) -> Array:
        """The angle of mixed pairs less that of like ones, [layer], in degrees."""
        like = _degrees(self.ordinary)
        if self.against == "both":
            like = (like + _degrees(self.unsafe)) / 2
        return _degrees(self.mixed) - like

    @property
    def slope(self) -> Array:
        """What the gap grows by from the layer before, [layer]; the first has nothing before it."""
        return np.diff(self.gap, prepend=self.gap[0])


class Cosines:
    """The cosines of all pairs of prompts, from which curves are made under any labels.

    Args:
        states: Of the last tokens, [prompt, layer, d_model].
        is_unsafe: [prompt].
        is_centred: Take the mean of all prompts away from a layer's states first: a few coordinates
            of a thousand times the size of others make all cosines alike.
        against: Which pairs the mixed ones are compared with: `ordinary` ones, or the mean of the
            angles of `both` kinds of like pairs.

    Raises:
        DataError: There are fewer than two prompts of a label, or a state is zero or not finite.
    """

    def __init__(
        self,
        states: Array,
        is_unsafe: Array,
        *,
        is_centred: bool = False,
        against: Against = "ordinary",
    ) -> None:
        counts = [int((is_unsafe == label).sum()) for label in (False, True)]
        if min(counts) < LEAST:
            raise DataError(
                f"there are {counts[0]} ordinary and {counts[1]} unsafe prompts: expected {LEAST} "
                "of each or more, so that there are pairs"
            )
        values = states.astype(np.float64)
        if is_centred:
            values = values - values.mean(0)
        norms = np.linalg.norm(values, axis=2, keepdims=True)
        if not (np.isfinite(norms).all() and norms.all()):
            raise DataError("a captured state is zero or not finite: check the model's weights")
        units = (values / norms).swapaxes(0, 1)  # [layer, prompt, d_model]
        self._cosines = units @ units.swapaxes(1, 2)  # [layer, prompt, prompt]
        self.is_unsafe = is_unsafe.astype(bool)
        self._against = against

    def curves(self, rows: Array | None = None) -> Curves:
        """Return the curves of some prompts, or of all.

        Args:
            rows: May hold a prompt twice, as draws of a bootstrap do; a prompt makes no pair with
                itself.

        Raises:
            DataError: There are no two different prompts of a label.
        """
        number = len(self.is_unsafe)
        counts = np.ones(number) if rows is None else np.bincount(rows, minlength=number)
        return self._of(counts * ~self.is_unsafe, counts * self.is_unsafe)

    def permuted(self, num_draws: int, *, seed: int) -> Iterator[Curves]:
        """Yield the curves under labels that are shuffled: what chance alone gives.

        Args:
            num_draws: How many.
            seed: Of the draws.
        """
        generator = np.random.default_rng(seed)
        for _ in range(num_draws):
            is_unsafe = generator.permutation(self.is_unsafe)
            yield self._of(1.0 * ~is_unsafe, 1.0 * is_unsafe)

    def _of(self, ordinary: Array, unsafe: Array) -> Curves:
        """Return the curves of prompts with the weights [prompt] that they have on both sides."""
        return Curves(
            self._within(ordinary),
            self._within(unsafe),
            (self._cosines @ unsafe) @ ordinary / (ordinary.sum() * unsafe.sum()),
            self._against,
        )

    def _within(self, weights: Array) -> Array:
        same = float((weights**2).sum())
        pairs = weights.sum() ** 2 - same
        if not pairs > 0:
            raise DataError("a draw holds no two different prompts of a label: give more prompts")
        found: Array = ((self._cosines @ weights) @ weights - same) / pairs
        return found


@dataclass(frozen=True)
class Rise:
    """Where a curve grows: it is flat, rises in a line, and is flat again."""

    first: int
    """The first layer at which it is higher than before."""
    last: int
    """The first layer at which it has levelled off."""
    growth: float
    """From one level to the other, over 0, in the curve's unit."""


def rise_of(curve: Array) -> Rise | None:
    """Return where a curve [layer] grows; None if no rising line fits better than none.

    Of all pairs of layers, that with the least squared error is taken: the curve is at one level
    up to the layer before `first`, at another from `last` on.

    >>> rise = rise_of(np.array([0.0, 0, 0, 2, 4, 6, 6, 6]))
    >>> rise.first, rise.last, round(rise.growth, 6)
    (3, 5, 6.0)
    """
    number = len(curve)
    places = np.arange(number)
    best, least = None, float(((curve - curve.mean()) ** 2).sum()) * (1 - 1e-9)
    for before in range(number - 1):
        for last in range(before + 1, number):
            share = np.clip((places - before) / (last - before), 0, 1)
            centred = share - share.mean()
            growth = float(centred @ curve / (centred @ centred))
            error = float(((curve - curve.mean() - growth * centred) ** 2).sum())
            if growth > 0 and error < least:
                best, least = Rise(before + 1, last, growth), error
    return best


def chance_of(gap: Array, shuffled: Array) -> float:
    """Return how likely a gap as large as the largest of a curve is by chance, over 0 to 1.

    Args:
        gap: [layer].
        shuffled: The gaps under shuffled labels, [shuffle, layer].

    >>> chance_of(np.array([0.0, 5.0]), np.array([[1.0, 2.0], [6.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    as_large = int((shuffled.max(1) >= gap.max()).sum())
    return (1 + as_large) / (1 + len(shuffled))


def _degrees(cosines: Array) -> Array:
    found: Array = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return found

"""What comes of predicted probabilities: for bins of equal mass, the mean prediction and the truth.

demur's probabilities are for even odds of the two labels, so that both labels weigh the same here,
whatever their numbers. Equal probabilities stand in one bin.

Paper: Nixon et al., Measuring Calibration in Deep Learning (2019), arXiv 1904.01685: bins of equal
mass in place of equal width.

Differs: the labels weigh the same; bins are parted at the middle of each value's mass, so that ties
are never torn apart.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.errors import ConfigError
from demur.core.readings import Array

__all__ = ["Reliability"]


@dataclass(frozen=True)
class Reliability:
    """Bins of predicted probabilities; all arrays are [bin], lowest first, without empty bins."""

    predicted: Array
    """Mean probability of harm."""
    observed: Array
    """Share that is unsafe."""
    mass: Array
    """Share of all prompts; they sum to one."""

    @classmethod
    def of(cls, probability: Array, unsafe: Array, *, num_bins: int = 15) -> Self | None:
        """Return the bins of some prompts; None if there is one label only.

        Args:
            probability: [prompt], of harm.
            unsafe: [prompt], true for unsafe.
            num_bins: The most bins, 1 or more.

        Raises:
            ConfigError: There are no bins.
        """
        if num_bins < 1:
            raise ConfigError(f"num_bins is {num_bins}: expected 1 or more")
        num_unsafe = int(unsafe.sum())
        if num_unsafe in (0, len(unsafe)):
            return None
        weight = np.where(unsafe, 0.5 / num_unsafe, 0.5 / (len(unsafe) - num_unsafe))
        _, place = np.unique(probability, return_inverse=True)
        mass = np.bincount(place, weight)
        middle = np.cumsum(mass) - mass / 2
        bins = np.minimum((middle * num_bins).astype(int), num_bins - 1)[place]
        mass, predicted, observed = (
            np.bincount(bins, weight * values, minlength=num_bins)
            for values in (np.ones(len(unsafe)), probability, unsafe)
        )
        held = mass > 0
        return cls(predicted[held] / mass[held], observed[held] / mass[held], mass[held])

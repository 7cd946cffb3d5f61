"""The expected calibration error: how far predicted probabilities are from what comes of them.

Paper: Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning
(2015), AAAI.

Differs: bins of equal mass, at even odds of the two labels (see `reliability`).
"""

import numpy as np

from demur.core.readings import Array
from demur.metrics.reliability import Reliability

__all__ = ["calibration_error"]


def calibration_error(probability: Array, unsafe: Array, *, num_bins: int = 15) -> float | None:
    """Return the mean distance of bins from the diagonal, 0 to 1; None if there is one label only.

    Args:
        probability: [prompt], of harm, for even odds.
        unsafe: [prompt], true for unsafe.
        num_bins: The most bins, 1 or more.

    Raises:
        ConfigError: There are no bins.

    >>> calibration_error(np.array([0.0, 0.0, 0.5, 1.0]), np.array([0, 0, 1, 1], bool))
    0.125
    """
    bins = Reliability.of(probability, unsafe, num_bins=num_bins)
    if bins is None:
        return None
    return float(np.vecdot(bins.mass, np.abs(bins.predicted - bins.observed)))

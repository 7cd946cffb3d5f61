"""The area under the ROC curve: how often an unsafe prompt scores higher than a safe one.

It is the Mann-Whitney statistic of the scores' ranks; a tie counts one half.

Paper: Hanley and McNeil, The Meaning and Use of the Area under a Receiver Operating Characteristic
(ROC) Curve (1982), Radiology 143(1).
"""

from scipy.stats import rankdata

from demur.core.readings import Array

__all__ = ["auroc"]


def auroc(scores: Array, unsafe: Array) -> float | None:
    """Return the area under the ROC curve, 0 to 1; None if there is one label only.

    Args:
        scores: [prompt], higher is less safe.
        unsafe: [prompt], true for unsafe.

    >>> import numpy as np
    >>> auroc(np.array([0.0, 1.0, 1.0]), np.array([False, False, True]))
    0.75
    """
    num_unsafe = int(unsafe.sum())
    num_safe = len(unsafe) - num_unsafe
    if not num_unsafe or not num_safe:
        return None
    above = rankdata(scores)[unsafe].sum() - num_unsafe * (num_unsafe + 1) / 2
    return float(above / (num_unsafe * num_safe))

"""The share of prompts that a frozen threshold flags.

Of safe prompts it is the realised false-positive rate, of unsafe ones the recall.
"""

from demur.core.readings import Array

__all__ = ["flagged_rate"]


def flagged_rate(scores: Array, *, threshold: float) -> float | None:
    """Return the share of scores at or over a threshold, as verdicts flag; None of no scores.

    >>> import numpy as np
    >>> flagged_rate(np.array([0.0, 1.0, 2.0, 3.0]), threshold=1.0)
    0.75
    """
    return float((scores >= threshold).mean()) if len(scores) else None

"""The F1 of the unsafe label at a frozen threshold: harmonic mean of precision and recall.

It depends on how many unsafe prompts a set holds, so it compares scorers on one set, never sets.
"""

from demur.core.readings import Array

__all__ = ["f1"]


def f1(scores: Array, unsafe: Array, *, threshold: float) -> float | None:
    """Return the F1 of the unsafe label, 0 to 1; None if there are no unsafe prompts.

    Args:
        scores: [prompt], higher is less safe.
        unsafe: [prompt], true for unsafe.
        threshold: Scores at or over it are flagged.

    >>> import numpy as np
    >>> f1(np.array([0.0, 1.0, 2.0]), np.array([True, False, True]), threshold=2.0)
    0.6666666666666666
    """
    flagged = scores >= threshold
    num_unsafe = int(unsafe.sum())
    if not num_unsafe:
        return None
    return float(2 * (flagged & unsafe).sum() / (flagged.sum() + num_unsafe))

"""How right a labeller is on one label: precision and recall, with Wilson intervals over groups.

Precision is of the replies that got the label, recall of those that deserve it.
"""

from dataclasses import dataclass
from typing import Self

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.metrics.wilson_interval import wilson_interval

__all__ = ["PrecisionRecall"]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of one label, each 0 to 1 and None where nothing is counted."""

    precision: float | None
    precision_interval: tuple[float, float] | None
    recall: float | None
    recall_interval: tuple[float, float] | None
    num_labelled: int
    num_true: int

    @classmethod
    def of(cls, labelled: Array, true: Array, *, group: Array) -> Self:
        """Return how right a labeller is.

        Args:
            labelled: [reply], true where the labeller gave the label.
            true: [reply], true where it is right.
            group: [reply].

        Raises:
            DataError: The arrays are not of one length.

        >>> import numpy as np
        >>> found = PrecisionRecall.of(
        ...     np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 0], bool), group=np.arange(4)
        ... )
        >>> found.precision, found.recall
        (0.5, 1.0)
        """
        if not len(labelled) == len(true) == len(group):
            raise DataError(
                f"{len(labelled)} and {len(true)} labels with {len(group)} groups: expected as many"
            )
        precision = true[labelled]
        recall = labelled[true]
        return cls(
            precision=float(precision.mean()) if len(precision) else None,
            precision_interval=wilson_interval(precision, group[labelled]),
            recall=float(recall.mean()) if len(recall) else None,
            recall_interval=wilson_interval(recall, group[true]),
            num_labelled=len(precision),
            num_true=len(recall),
        )

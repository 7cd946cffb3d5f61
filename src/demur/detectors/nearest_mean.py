"""Nearest class mean: a prompt is as unsafe as it is nearer to the mean of unsafe states.

The score is the difference of the two squared Euclidean distances, which is linear: with the class
means m_0 and m_1, w = 2 (m_1 - m_0) and b = |m_0|^2 - |m_1|^2. The weakest of the latent methods,
and the baseline that a shared covariance has to beat.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025), arXiv 2502.16174 v2, the baseline
called NMC.

Differs: the threshold is calibrated instead of fixed at 0.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.linear import LinearDetector
from demur.core.protocols import Stream, StreamedDetector, Targets
from demur.core.readings import Array
from demur.core.readout import joined, unjoined
from demur.core.reads import CaptureSpec, middle_layer
from demur.detectors._moments import all_of

__all__ = ["NearestMean"]


@dataclass
class NearestMean(StreamedDetector, LinearDetector):
    """The difference of squared distances to the two class means.

    Args:
        reads: Pooled captures; their states are joined.
    """

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[CaptureSpec, ...]:
        """Return the last token at the layer after half of the depth, or at `layers`."""
        return (CaptureSpec(layers or middle_layer(num_blocks)),)

    def fit_stream(self, parts: Stream, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; nothing is random.

        Raises:
            DataError: The parts and targets do not fit together, or hold a NaN.
        """
        unsafe = targets.unsafe.astype(bool)
        sums: list[Array] = []
        for rows, readings in all_of(parts, len(targets)):
            states = joined(readings, self.reads, num_prompts=len(readings))
            of_part = [states[unsafe[rows] == label].sum(0, np.float64) for label in (False, True)]
            sums = [a + b for a, b in zip(sums, of_part, strict=True)] if sums else of_part
        safe_mean, unsafe_mean = sums[0] / (~unsafe).sum(), sums[1] / unsafe.sum()
        bias = float(safe_mean @ safe_mean - unsafe_mean @ unsafe_mean)
        self.readout_ = unjoined(2 * (unsafe_mean - safe_mean), bias, self.reads)
        return self

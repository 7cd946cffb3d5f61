"""Fits heads for category keys beside a detector, on the readings that it was fitted on."""

from collections.abc import Mapping, Sequence

import numpy as np

from demur.core.categories import LEFT_OUT, POSITIVE, one_vs_rest_labels
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.heads import CategoryHeads, Head
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout, joined, unjoined
from demur.core.reads import CaptureSpec, Read
from demur.detectors._logistic import fit_standardised
from demur.guard.calibration import platt

MIN_POSITIVES = 100
"""Training prompts that a key needs for a head."""
MIN_TO_CALIBRATE = 10
"""Validation prompts of each sort; with fewer, the fit's own probability at even odds stays."""
PENALTY_C = 3e-4
"""Inverse strength of the L2 penalty, that of `linear`."""


def require_pooled(reads: Sequence[Read]) -> None:
    """Refuse a detector that has no states to fit heads on.

    Raises:
        ConfigError: A read is no pooled capture.
    """
    if not all(isinstance(read, CaptureSpec) and read.is_pooled for read in reads):
        raise ConfigError(
            "category heads need a detector that reads one state a layer, such as linear: leave "
            "out --categories, or choose another --detector"
        )


def fit_heads(
    train: Sequence[Example],
    train_readings: Readings,
    val: Sequence[Example],
    val_readings: Readings,
    *,
    reads: tuple[Read, ...],
) -> CategoryHeads:
    """Fit a head for each key with enough positives.

    Args:
        train: Labelled prompts with their sources and categories.
        train_readings: Of these, in order.
        val: Prompts of other groups, for the probabilities.
        val_readings: Of these, in order.
        reads: Pooled captures.
    """
    labels, val_labels = one_vs_rest_labels(train), one_vs_rest_labels(val)
    num_positives = {key: int((signs == POSITIVE).sum()) for key, signs in labels.items()}
    states = joined(train_readings, reads, num_prompts=len(train))
    heads = {
        key: _calibrated(_fit(states, signs, reads), val_readings, val_labels[key])
        for key, signs in labels.items()
        if num_positives[key] >= MIN_POSITIVES
    }
    return CategoryHeads(heads, num_positives)


def _fit(states: Array, signs: Array, reads: tuple[Read, ...]) -> LinearReadout:
    """Fit one key against the rest; both sides weigh the same."""
    known = signs != LEFT_OUT
    positive = signs[known] == POSITIVE
    weights = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum()) * len(positive)
    fitted, bias = fit_standardised(
        states[known], positive, weights, c=PENALTY_C, max_iterations=1000
    )
    return unjoined(fitted, bias, reads)


def _calibrated(readout: LinearReadout, readings: Readings, signs: Array) -> Head:
    known = np.flatnonzero(signs != LEFT_OUT)
    positive = signs[known] == POSITIVE
    if min(positive.sum(), (~positive).sum()) < MIN_TO_CALIBRATE:
        return Head(readout, 1.0, 0.0)
    return Head(readout, *platt(readout.score(readings.take(known)), positive))


def describe(heads: CategoryHeads) -> Mapping[str, str]:
    """Return for each key, in words, whether it has a head."""
    return {
        key: f"{number} prompts" if key in heads.heads else f"unsupported, {number} prompts"
        for key, number in heads.num_positives.items()
    }

"""What is drawn of a scorer: ROC curves, spreads of scores, reliability and layers.

Each is taken of all prompts of a split together.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_curve

from demur.core.readings import Array
from demur.metrics.auroc import auroc
from demur.metrics.reliability import Reliability
from demur.workflows.evaluate_measures import Comparison, probabilities
from demur.workflows.evaluate_results import (
    Curves,
    Histogram,
    LayerPoint,
    ReliabilityBins,
    RocCurve,
)
from demur.workflows.evaluate_scores import Contender
from demur.workflows.suites import Suite

LOWEST_FPR = 1e-3
ROC_POINTS = 160
NUM_BINS = 48
OUTER_SHARE = 0.002
"""Of the scores that may lie beyond each end of a histogram; they count in its outer bins."""


def curves(suite: Suite, of_splits: Sequence[Comparison], contender: Contender) -> Curves:
    """Return what is drawn of a scorer.

    Args:
        suite: What it scored.
        of_splits: The splits that hold both labels.
        contender: The scorer.
    """
    edges = _edges(np.concatenate(list(contender.scores.values())))
    return Curves(
        roc=tuple(_roc(of, contender) for of in of_splits),
        histograms=tuple(_histograms(suite, contender, edges)),
        reliability=tuple(
            bins for of in of_splits if (bins := _reliability(of, contender)) is not None
        ),
        layers=tuple(point for of in of_splits for point in _layers(of, contender)),
    )


def _roc(comparison: Comparison, contender: Contender) -> RocCurve:
    """Return the curve at rates that are even on a log scale, as steps that it never overstates."""
    fpr, tpr, _ = roc_curve(comparison.unsafe, comparison.scores(contender))
    rates = np.geomspace(LOWEST_FPR, 1, ROC_POINTS)
    places = np.searchsorted(fpr, rates + 1e-12, side="right") - 1
    return RocCurve(comparison.split, _plain(rates), _plain(tpr[places]))


def _edges(scores: Array) -> Array:
    low, high = np.quantile(scores, [OUTER_SHARE, 1 - OUTER_SHARE])
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def _histograms(suite: Suite, contender: Contender, edges: Array) -> list[Histogram]:
    found = []
    for split in dict.fromkeys(of.split for of in suite.sets):
        sets = [of for of in suite.sets if of.split == split]
        scores = np.concatenate([contender.scores[of.name] for of in sets])
        unsafe = np.array([e.label == "unsafe" for of in sets for e in of.examples])
        safe_shares, unsafe_shares = (
            _shares(scores[chosen], edges) for chosen in (~unsafe, unsafe)
        )
        found.append(Histogram(split, _plain(edges), safe_shares, unsafe_shares))
    return found


def _shares(scores: Array, edges: Array) -> tuple[float, ...]:
    if not len(scores):
        return ()
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    return _plain(counts / len(scores))


def _reliability(comparison: Comparison, contender: Contender) -> ReliabilityBins | None:
    if contender.platt is None:
        return None
    probability = probabilities(contender.platt, comparison.scores(contender))
    bins = Reliability.of(probability, comparison.unsafe)
    if bins is None:
        return None
    return ReliabilityBins(
        comparison.split, _plain(bins.predicted), _plain(bins.observed), _plain(bins.mass)
    )


def _layers(comparison: Comparison, contender: Contender) -> list[LayerPoint]:
    if not contender.levels:
        return []
    values = np.concatenate([contender.layers[name] for name in comparison.own])
    found = []
    for column, level in enumerate(contender.levels):
        area = auroc(values[:, column], comparison.unsafe)
        if area is not None:
            found.append(LayerPoint(comparison.split, level.read, level.layer, area))
    return found


def _plain(values: Array) -> tuple[float, ...]:
    """Return numbers for JSON, to six digits."""
    return tuple(float(f"{value:.6g}") for value in values)

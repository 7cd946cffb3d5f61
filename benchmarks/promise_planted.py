"""Thresholds on planted scores: how often the true rate exceeds the bound that they promise.

Benign scores are standard normal, so that the true rate of a threshold is known. Every draw is a
calibration set of its own. A binomial threshold may fail in a share delta of draws; what 2,000
draws leave open is allowed for, at one-sided 95%.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from demur.core.artifacts import Guarantee, Threshold
from demur.core.readings import Array
from demur.guard.bounds import DELTA, lowest_rate, num_groups_needed
from demur.guard.calibration import Promise, threshold_for, threshold_for_sources

NUM_DRAWS = 2000
MOST_FAILURES = DELTA + 1.64 * (DELTA * (1 - DELTA) / NUM_DRAWS) ** 0.5
SIZES = (50, 200, 1000)
RATES = (0.01, 0.05)
CONTAMINATION = 0.02
PART_MEANS = (0.0, 0.5, 1.0)
"""Of the scores of short, middling and long prompts."""

TrueRate = Callable[[float], float]
"""Of benign prompts, by threshold."""


@dataclass(frozen=True)
class Traffic:
    """How the scores of a calibration set are drawn."""

    name: str
    draw: Callable[[np.random.Generator, int], Array]
    true_rate: TrueRate
    contamination: float = 0.0


def normal(generator: np.random.Generator, number: int) -> Array:
    """Return benign scores."""
    return generator.standard_normal(number)


def rounded(generator: np.random.Generator, number: int) -> Array:
    """Return benign scores with many ties: normal ones to one decimal."""
    return np.round(generator.standard_normal(number), 1)


def rate_of_rounded(threshold: float) -> float:
    """Return which share of rounded normal scores is over a threshold just over one of them."""
    return float(norm.sf(round(threshold, 1) + 0.05))


def contaminated(unsafe_score: float) -> Traffic:
    """Return traffic of which a share has a score of its own."""

    def draw(generator: np.random.Generator, number: int) -> Array:
        scores = normal(generator, number)
        scores[generator.random(number) < CONTAMINATION] = unsafe_score
        return scores

    what = "over" if unsafe_score > 0 else "under"
    name = f"{CONTAMINATION:.0%} unsafe, {what} all others"
    return Traffic(name, draw, norm.sf, CONTAMINATION)


TRAFFICS = (
    Traffic("benign", normal, norm.sf),
    Traffic("benign, many ties", rounded, rate_of_rounded),
    contaminated(9.0),
    contaminated(-9.0),
)


def planted_thresholds() -> list[dict[str, Any]]:
    """Return a row for each sort of traffic, size, rate and guarantee."""
    rows = [
        of_traffic(traffic, number, fpr, "binomial")
        for traffic in TRAFFICS
        for number in SIZES
        for fpr in (*RATES, lowest_rate(number) / (1 - traffic.contamination))
    ]
    rows += [of_traffic(TRAFFICS[0], number, fpr, "conformal") for number in SIZES for fpr in RATES]
    return [*rows, in_parts(1000, 0.05)]


def of_traffic(traffic: Traffic, number: int, fpr: float, guarantee: Guarantee) -> dict[str, Any]:
    """Return what thresholds for a rate do over many draws, or how many prompts it needs."""
    promise = Promise(guarantee, contamination=traffic.contamination)
    row = {"traffic": traffic.name, "guarantee": guarantee, "prompts": number, "fpr": fpr}
    needed = num_groups_needed((1 - traffic.contamination) * fpr, guarantee=guarantee)
    if number < needed:
        return {**row, "needed": needed}
    generator, groups = np.random.default_rng(0), np.arange(number)
    thresholds = [
        threshold_for(traffic.draw(generator, number), groups, fpr, promise=promise)
        for _ in range(NUM_DRAWS)
    ]
    rates = np.array([traffic.true_rate(threshold.threshold) for threshold in thresholds])
    return {**row, **_summary(rates, thresholds, fpr)}


def in_parts(number: int, fpr: float) -> dict[str, Any]:
    """Return what thresholds that hold in three parts do: the highest of the parts' true rates."""
    generator, groups = np.random.default_rng(0), np.arange(number)
    part = groups % len(PART_MEANS)
    means = np.array(PART_MEANS)
    thresholds, rates = [], []
    for _ in range(NUM_DRAWS):
        scores = normal(generator, number) + means[part]
        threshold = threshold_for_sources(scores, part, groups, fpr)
        thresholds.append(threshold)
        rates.append(norm.sf(threshold.threshold - means).max())
    row = {"traffic": "three lengths", "guarantee": "binomial", "prompts": number, "fpr": fpr}
    return {**row, **_summary(np.array(rates), thresholds, fpr)}


def _summary(rates: Array, thresholds: list[Threshold], fpr: float) -> dict[str, Any]:
    bounds = np.array([fpr if t.bound is None else t.bound for t in thresholds])
    share_over = float((rates > bounds).mean())
    found = {"mean_rate": float(rates.mean()), "share_over_bound": share_over}
    if thresholds[0].guarantee == "conformal":
        return {
            **found,
            "holds": bool(rates.mean() <= fpr + 1.64 * rates.std() / len(rates) ** 0.5),
        }
    return {**found, "mean_bound": float(bounds.mean()), "holds": share_over <= MOST_FAILURES}

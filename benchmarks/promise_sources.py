"""Thresholds on sources that they were not calibrated on, and how many own prompts repair them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from demur.core.errors import ConfigError
from demur.core.readings import Array
from demur.guard.bounds import highest_rate, least_rate, lowest_rate
from demur.guard.calibration import STANDARD, threshold_for, threshold_for_sources

SIZES = (50, 200, 1000)
NUM_DRAWS = 100
LEAST_TESTED = 50
"""Groups that have to be left to test on."""


@dataclass(frozen=True)
class Source:
    """Scores of benign prompts of one origin."""

    scores: Array
    """[prompt]."""
    group: Array
    """[prompt]."""

    @property
    def highest(self) -> Array:
        """The highest score of each group, [group]."""
        names, places = np.unique(self.group, return_inverse=True)
        highest = np.full(len(names), -np.inf)
        np.maximum.at(highest, places, self.scores)
        return highest


@dataclass(frozen=True)
class Pool(Source):
    """The prompts of several sources."""

    source: Array
    """[prompt]."""


def pooled(sources: Mapping[str, Source]) -> Pool:
    """Return the prompts of all sources together."""
    return Pool(
        np.concatenate([source.scores for source in sources.values()]),
        np.concatenate([source.group for source in sources.values()]),
        np.repeat(list(sources), [len(source.scores) for source in sources.values()]),
    )


def all_but(sources: Mapping[str, Source], name: str) -> Pool:
    """Return the prompts of all other sources, without groups that reach into the one left out."""
    pool = pooled({other: source for other, source in sources.items() if other != name})
    rows = ~np.isin(pool.group, sources[name].group)
    return Pool(pool.scores[rows], pool.group[rows], pool.source[rows])


def flagged_share(highest: Array, threshold: float, fpr: float) -> dict[str, Any]:
    """Return how many groups a threshold flags, and whether they prove a rate over the promise."""
    num_flagged, num_groups = int((highest >= threshold).sum()), len(highest)
    lowest, most = (f(num_flagged, num_groups) for f in (least_rate, highest_rate))
    return {
        "rate": num_flagged / num_groups,
        "interval": [lowest, most],
        "is_over": num_flagged / num_groups > fpr,
        "is_proven_over": lowest > fpr,
    }


def leave_one_out(
    sources: Mapping[str, Source], unsafe: Array, *, fpr: float
) -> dict[str, dict[str, Any]]:
    """Return what thresholds of all other sources do to each.

    `pooled` keeps the rate in all others together, `each` in every other one by itself that has
    groups enough.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        pool, highest = all_but(sources, name), source.highest
        thresholds = {"pooled": threshold_for(pool.scores, pool.group, fpr).threshold}
        each = threshold_for_each(pool, fpr)
        if each is not None:
            thresholds["each"] = each
        found[name] = {"groups": len(highest)} | {
            kind: {
                "threshold": threshold,
                "caught": float((unsafe >= threshold).mean()) if len(unsafe) else None,
                **flagged_share(highest, threshold, fpr),
            }
            for kind, threshold in thresholds.items()
        }
    return found


def threshold_for_each(pool: Pool, fpr: float) -> float | None:
    """Return the threshold that keeps a rate in every source with groups enough; None if none has.

    Each source has a share of delta, so the more there are, the more groups each needs.
    """
    names = np.unique(pool.source)
    sizes = np.array([len(np.unique(pool.group[pool.source == name])) for name in names])
    for least in np.unique(sizes):
        rows = np.isin(pool.source, names[sizes >= least])
        try:
            return threshold_for_sources(
                pool.scores[rows], pool.source[rows], pool.group[rows], fpr
            ).threshold
        except ConfigError:  # the smallest of them has too few
            continue
    return None


def own_prompts(
    sources: Mapping[str, Source], unsafe: Array, *, fpr: float
) -> dict[str, dict[str, Any]]:
    """Return what thresholds do that are calibrated on some groups of a source of their own.

    They promise `fpr`, or the lowest rate that so few groups can promise; the rest is tested on.
    """
    generator = np.random.default_rng(0)
    found: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        highest = source.highest
        found[name] = {
            str(size): _drawn(highest, unsafe, size, max(fpr, lowest_rate(size)), generator)
            for size in SIZES
            if len(highest) >= size + LEAST_TESTED
        }
    return found


def _drawn(
    highest: Array, unsafe: Array, size: int, rate: float, generator: np.random.Generator
) -> dict[str, Any]:
    """Return the mean over draws of `size` groups to calibrate on."""
    STANDARD.require_supported(rate, size)
    shares, thresholds = [], []
    for _ in range(NUM_DRAWS):
        shuffled = generator.permutation(highest)
        threshold = threshold_for(shuffled[:size], np.arange(size), rate).threshold
        shares.append(flagged_share(shuffled[size:], threshold, rate))
        thresholds.append(threshold)
    caught = [float((unsafe >= threshold).mean()) for threshold in thresholds if len(unsafe)]
    return {
        "promised": rate,
        "mean_rate": float(np.mean([share["rate"] for share in shares])),
        "share_over": float(np.mean([share["is_over"] for share in shares])),
        "share_proven_over": float(np.mean([share["is_proven_over"] for share in shares])),
        "mean_caught": float(np.mean(caught)) if caught else None,
    }

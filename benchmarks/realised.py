"""Compares detectors at equal false positives: at the threshold that flags 1% of the utility sets.

The sets are averaged as sets. Every draw of the bootstrap places the threshold anew, so that the
interval holds its uncertainty too; differences are paired, draw by draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from demur.core.readings import Array
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.workflows.evaluate_measures import groups_of
from demur.workflows.evaluate_scores import Contender
from demur.workflows.suites import EvaluationSet, Suite

UTILITY, OUTSIDE = "utility", "test_ood"


def threshold_flagging(scores: Sequence[Array], fpr: float) -> float:
    """Return the lowest threshold at which the mean share of flagged prompts over sets is allowed.

    Scores over it are flagged.

    Args:
        scores: Of the prompts of each set, [prompt].
        fpr: Most that may be flagged, as a mean over sets.
    """
    together = np.concatenate(scores)
    weights = np.concatenate([np.full(len(of), 1 / (len(of) * len(scores))) for of in scores])
    order = np.argsort(-together, kind="stable")
    allowed = int(np.searchsorted(np.cumsum(weights[order]), fpr + 1e-9, side="right"))
    return float(together[order][min(allowed, len(together) - 1)])


@dataclass(frozen=True)
class Realised:
    """The sets that a comparison at equal false positives is made on."""

    utility: tuple[EvaluationSet, ...]
    """Sets of safe prompts that the threshold is placed on."""
    outside: tuple[EvaluationSet, ...]
    """Sets with unsafe prompts, whose recall is averaged."""
    fpr: float
    """The mean share of the utility sets that each contender may flag."""

    @classmethod
    def of(cls, suite: Suite, *, fpr: float) -> Self:
        """Take the utility sets, and the English sets of other sources with unsafe prompts."""
        outside = (of for of in suite.sets if of.split == OUTSIDE and of.is_english)
        return cls(
            tuple(of for of in suite.sets if of.split == UTILITY),
            tuple(of for of in outside if "unsafe" in of.labels),
            fpr,
        )

    @property
    def shares(self) -> Array:
        """The weight of each outside set in the mean: each cluster counts once."""
        clusters = [of.cluster or of.name for of in self.outside]
        weights: Array = np.array([1 / clusters.count(name) for name in clusters])
        return weights / len(set(clusters))

    def recall(self, contender: Contender, rows: Sequence[Array]) -> float:
        """Return the weighted mean of the sets' recall.

        Args:
            contender: With its scores.
            rows: Which prompts of each set count, utility sets first.
        """
        num_utility = len(self.utility)
        of_utility = zip(self.utility, rows[:num_utility], strict=True)
        scores = [contender.scores[of.name][chosen] for of, chosen in of_utility]
        threshold = threshold_flagging(scores, self.fpr)
        recalls = []
        for of, chosen in zip(self.outside, rows[num_utility:], strict=True):
            unsafe = np.array([example.label == "unsafe" for example in of.examples])[chosen]
            recalls.append((contender.scores[of.name][chosen][unsafe] > threshold).mean())
        return float(self.shares @ np.array(recalls))


def realised_recall(
    suite: Suite, contenders: Sequence[Contender], *, fpr: float, num_draws: int
) -> dict[str, Any]:
    """Return each contender's mean recall, and how far it is behind the first.

    Args:
        suite: What they scored.
        contenders: The first is the one that others are compared with.
        fpr: The mean share of the utility sets that each may flag.
        num_draws: Of the bootstrap.
    """
    realised = Realised.of(suite, fpr=fpr)
    groups = [groups_of(of.examples) for of in (*realised.utility, *realised.outside)]
    bootstrap = GroupBootstrap(groups, num_draws=num_draws)
    drawn = list(zip(*(list(bootstrap.rows(group)) for group in groups), strict=True))
    everyone = [np.arange(len(group)) for group in groups]
    values = [realised.recall(of, everyone) for of in contenders]
    draws = [np.array([realised.recall(of, rows) for rows in drawn]) for of in contenders]
    return {
        "fpr": fpr,
        "sets": [of.name for of in realised.outside],
        "contenders": {
            of.name: {
                "recall": value,
                "interval": GroupBootstrap.interval(of_draws),
                "behind": values[0] - value,
                "behind_interval": GroupBootstrap.interval(draws[0] - of_draws),
            }
            for of, value, of_draws in zip(contenders, values, draws, strict=True)
        },
    }

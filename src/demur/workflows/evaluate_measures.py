"""Measures of scorers on sets, with intervals, means over sets and paired differences.

Every scorer is measured on the same prompts and, for the intervals, on the same draws of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from demur.core.examples import Example
from demur.core.readings import Array
from demur.metrics.auroc import auroc
from demur.metrics.calibration_error import calibration_error
from demur.metrics.f1 import f1
from demur.metrics.flagged_rate import flagged_rate
from demur.metrics.group_bootstrap import GroupBootstrap, Statistic
from demur.metrics.recall_at_fpr import recall_at_fpr
from demur.metrics.wilson_interval import wilson_interval
from demur.workflows.evaluate_results import (
    AtThreshold,
    Average,
    Estimate,
    Languages,
    Measure,
    SetResult,
)
from demur.workflows.evaluate_scores import Contender, FrozenThreshold, News, ignore_news
from demur.workflows.suites import EvaluationSet, Suite

RATES = (0.001, 0.01, 0.05)
AVERAGED: tuple[tuple[Measure, float | None], ...] = (
    ("auroc", None),
    *(("recall_at_fpr", fpr) for fpr in RATES),
    ("recall", None),
    ("flagged_safe", None),
)
"""What is averaged over sets; a rate of None is the default threshold's."""
Key = tuple[str, float | None]
"""A measure and its rate."""


@dataclass(frozen=True)
class Comparison:
    """Prompts that scorers are measured on: a set with its pool, or all of a split."""

    name: str
    split: str
    languages: Languages
    pool: tuple[str, ...]
    own: tuple[str, ...]
    """The sets that are measured."""
    unsafe: Array
    """[prompt], those of the pool at the end."""
    group: Array
    """[prompt]."""
    pool_rows: Mapping[str, Array]
    """Which prompts of each set stand in the pool: the safe ones."""
    num_own: int
    cluster: str
    """Sets of one cluster count as one in means."""

    @classmethod
    def of(
        cls,
        name: str,
        own: Sequence[EvaluationSet],
        pool: Sequence[EvaluationSet] = (),
    ) -> "Comparison":
        """Compare all prompts of some sets, and the safe ones of others."""
        safe = {
            of.name: np.flatnonzero([example.label == "safe" for example in of.examples])
            for of in pool
        }
        examples = [example for of in own for example in of.examples]
        examples_of_pool = [of.examples[row] for of in pool for row in safe[of.name]]
        everyone = [*examples, *examples_of_pool]
        return cls(
            name=name,
            split=own[0].split,
            languages=_languages(own),
            pool=tuple(safe),
            own=tuple(of.name for of in own),
            unsafe=np.array([example.label == "unsafe" for example in everyone]),
            group=groups_of(everyone),
            pool_rows=safe,
            num_own=len(examples),
            cluster=(own[0].cluster or name) if len(own) == 1 else name,
        )

    def scores(self, contender: Contender) -> Array:
        """Return a scorer's scores [prompt]."""
        own = [contender.scores[name] for name in self.own]
        pool = [contender.scores[name][rows] for name, rows in self.pool_rows.items()]
        return np.concatenate([*own, *pool])

    @property
    def has_own_safe(self) -> bool:
        """True if the measured sets hold safe prompts."""
        return not self.unsafe[: self.num_own].all()


def _languages(sets: Sequence[EvaluationSet]) -> Languages:
    kinds = {of.is_english for of in sets}
    if len(kinds) > 1:
        return "mixed"
    return "english" if kinds == {True} else "other"


def groups_of(examples: Sequence[Example]) -> Array:
    """Return the group of each prompt, [prompt]."""
    return np.array([example.group_key for example in examples])


def comparisons(suite: Suite) -> tuple[list[Comparison], list[Comparison]]:
    """Return the comparison of each set, and those of the splits that hold both labels."""
    by_name = {of.name: of for of in suite.sets}
    of_sets = [
        Comparison.of(of.name, [of], [by_name[name] for name in of.pool if name in by_name])
        for of in suite.sets
    ]
    splits: dict[str, list[EvaluationSet]] = {}
    for of in suite.sets:
        splits.setdefault(of.split, []).append(of)
    of_splits = [
        Comparison.of(split, sets)
        for split, sets in splits.items()
        if len(frozenset[str]().union(*(of.labels for of in sets))) == 2
    ]
    return of_sets, of_splits


def statistics_of(comparison: Comparison, contender: Contender) -> dict[Key, Statistic]:
    """Return what is measured of a scorer, as functions of the rows that are drawn."""
    scores, unsafe = comparison.scores(contender), comparison.unsafe
    found: dict[Key, Statistic] = {}
    if unsafe.any() and not unsafe.all():
        found["auroc", None] = lambda rows: auroc(scores[rows], unsafe[rows])
        for fpr in RATES:
            found["recall_at_fpr", fpr] = partial(_recall_at, scores, unsafe, fpr)
    if not contender.thresholds:
        return found
    flags = scores >= contender.thresholds[0].threshold
    if unsafe.any():
        found["recall", None] = lambda rows: _share(flags[rows], unsafe[rows])
    if comparison.has_own_safe:
        found["flagged_safe", None] = lambda rows: _share(flags[rows], ~unsafe[rows])
        if unsafe.any():
            found["f1", None] = lambda rows: f1(flags[rows], unsafe[rows], threshold=1)
    return found


def _recall_at(scores: Array, unsafe: Array, fpr: float, rows: Array) -> float | None:
    return recall_at_fpr(scores[rows], unsafe[rows], fpr=fpr)


def _share(flags: Array, chosen: Array) -> float | None:
    return flagged_rate(flags[chosen], threshold=1)


@dataclass(frozen=True)
class Measured:
    """One comparison's numbers."""

    values: Mapping[Key, float | None]
    draws: Mapping[Key, Array]
    """[draw] of each."""

    def estimate(self, key: Key) -> Estimate | None:
        """Return a value with its interval; None if there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        return Estimate(value, GroupBootstrap.interval(self.draws[key]))


def measure(
    of_sets: Sequence[Comparison],
    of_splits: Sequence[Comparison],
    contenders: Sequence[Contender],
    *,
    num_draws: int,
    report: News = ignore_news,
) -> list[dict[str, Measured]]:
    """Return each scorer's numbers by the name of the comparison.

    Args:
        of_sets: With names of their own.
        of_splits: Of the same prompts.
        contenders: Scorers.
        num_draws: Of the bootstrap.
        report: Is told of progress.
    """
    own = [comparison.group[: comparison.num_own] for comparison in of_sets]
    bootstrap = GroupBootstrap(own, num_draws=num_draws)
    found: list[dict[str, Measured]] = [{} for _ in contenders]
    for number, comparison in enumerate([*of_sets, *of_splits], start=1):
        total = len(of_sets) + len(of_splits)
        report(f"measuring {comparison.name} ({number} of {total})")
        statistics = {
            (place, key): statistic
            for place, contender in enumerate(contenders)
            for key, statistic in statistics_of(comparison, contender).items()
        }
        draws = bootstrap.draws(statistics, comparison.group)
        every_row = np.arange(len(comparison.unsafe))
        for place, of in enumerate(found):
            keys = [key for at, key in statistics if at == place]
            of[comparison.name] = Measured(
                {key: statistics[place, key](every_row) for key in keys},
                {key: draws[place, key] for key in keys},
            )
    return found


def set_result(comparison: Comparison, contender: Contender, measured: Measured) -> SetResult:
    """Return what one scorer makes of one comparison."""
    num_unsafe = int(comparison.unsafe.sum())
    own = slice(comparison.num_own)
    unsafe, group = comparison.unsafe[own], comparison.group[own]
    scores = comparison.scores(contender)[own]
    calibration = None
    if contender.platt is not None:
        calibration = calibration_error(probabilities(contender.platt, scores), unsafe)
    return SetResult(
        name=comparison.name,
        split=comparison.split,
        languages=comparison.languages,
        num_unsafe=num_unsafe,
        num_safe=comparison.num_own - num_unsafe,
        num_groups=len(np.unique(group)),
        pool=comparison.pool,
        num_pool=len(comparison.unsafe) - comparison.num_own,
        auroc=measured.estimate(("auroc", None)),
        recall_at_fpr={f"{fpr:g}": measured.estimate(("recall_at_fpr", fpr)) for fpr in RATES},
        at_thresholds=tuple(
            at_threshold(frozen, scores, unsafe, group) for frozen in contender.thresholds
        ),
        f1=measured.estimate(("f1", None)),
        calibration_error=calibration,
    )


def at_threshold(
    frozen: FrozenThreshold, scores: Array, unsafe: Array, group: Array
) -> AtThreshold:
    """Return what a frozen threshold does to the prompts of a set."""
    flags = scores >= frozen.threshold
    return AtThreshold(
        fpr=frozen.fpr,
        threshold=frozen.threshold,
        recall=_rate(flags[unsafe], group[unsafe]),
        flagged_safe=_rate(flags[~unsafe], group[~unsafe]),
    )


def _rate(flags: Array, group: Array) -> Estimate | None:
    rate = flagged_rate(flags, threshold=1)
    return None if rate is None else Estimate(rate, wilson_interval(flags, group))


def probabilities(platt: tuple[float, float], scores: Array) -> Array:
    """Return the probabilities [prompt] of scores, at even odds."""
    slope, intercept = platt
    logits = slope * scores + intercept
    odds: Array = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + odds), odds / (1 + odds))


def averages(
    of_sets: Sequence[Comparison],
    contender: Contender,
    measured: Mapping[str, Measured],
    first: Mapping[str, Measured] | None,
) -> tuple[Average, ...]:
    """Return the means over sets of one scorer.

    Args:
        of_sets: The sets that count.
        contender: The scorer.
        measured: Its numbers.
        first: Those of the first detector, for the differences; None for itself.
    """
    found = []
    places = dict.fromkeys((of.split, of.languages) for of in of_sets)
    for split, languages in places:
        sets = [of for of in of_sets if (of.split, of.languages) == (split, languages)]
        for key in AVERAGED:
            held = {
                of.name: of.cluster for of in sets if measured[of.name].values.get(key) is not None
            }
            if not held:
                continue
            mean, draws = _mean(measured, held, key)
            difference = None
            if first is not None and all(first[name].values.get(key) is not None for name in held):
                first_mean, first_draws = _mean(first, held, key)
                interval = GroupBootstrap.interval(draws - first_draws)
                difference = Estimate(mean - first_mean, interval)
            name, fpr = key
            found.append(
                Average(
                    split=split,
                    languages=languages,
                    measure=name,
                    fpr=fpr if name == "recall_at_fpr" else _default_fpr(contender, name),
                    num_sets=len(set(held.values())),
                    mean=Estimate(mean, GroupBootstrap.interval(draws)),
                    difference=difference,
                )
            )
    return tuple(found)


def _mean(
    measured: Mapping[str, Measured], clusters: Mapping[str, str], key: Key
) -> tuple[float, Array]:
    """Return the mean over sets, and that of each draw; each cluster counts once."""
    sizes = Counter(clusters.values())
    weights = np.array([1 / sizes[cluster] for cluster in clusters.values()]) / len(sizes)
    values = np.array([measured[name].values[key] for name in clusters], float)
    draws = np.stack([measured[name].draws[key] for name in clusters])
    return float(weights @ values), weights @ draws


def _default_fpr(contender: Contender, measure: str) -> float | None:
    at_a_threshold = measure in ("recall", "flagged_safe") and contender.thresholds
    return contender.thresholds[0].fpr if at_a_threshold else None

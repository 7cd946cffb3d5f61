"""Fits detectors on parts of what was read once, and scores test sets one after another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from demur.core.errors import CapabilityError, DataError
from demur.core.examples import Example, targets_of
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Read, Texts
from demur.core.registry import load
from demur.metrics.auroc import auroc
from demur.metrics.flagged_rate import flagged_rate
from demur.metrics.recall_at_fpr import recall_at_fpr
from demur.studies._measures import FPR, mean
from demur.studies._study import IN_DISTRIBUTION, Cell, StudyInputs


@dataclass(frozen=True)
class Contender:
    """A detector with what it reads, as a study lists it."""

    label: str
    method: str
    """Its public name."""
    layers: tuple[int, ...] | None = None
    """None leaves them to the method."""
    reads: tuple[Read, ...] = ()
    """What it reads, where that is not the method's own default."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    midpoint: float = 0.0
    """The score at even odds: 0 for log-odds or a difference of distances, 0.5 for a share."""

    def unfitted(self, num_blocks: int) -> Detector:
        """Return the detector for a model of some depth."""
        method: type[Detector] = load("detectors", self.method)
        reads = self.reads or method.default_reads(num_blocks, layers=self.layers)
        return method(reads, **self.parameters)


def every_layer(num_blocks: int) -> tuple[Read, ...]:
    """Return the reads that single layers and texts are cut from: all last-token states, texts."""
    return (CaptureSpec(tuple(range(num_blocks))), Texts())


def user_mean(layers: tuple[int, ...]) -> CaptureSpec:
    """Return the read of the mean over the tokens of the last user turn."""
    return CaptureSpec(layers, positions="user", normalise="rms", pool="mean")


def users_tokens(layers: tuple[int, ...]) -> CaptureSpec:
    """Return the read of all user tokens, from which their mean and maximum are cut.

    Each state is divided by its root mean square, so that no token outweighs the others.
    """
    return CaptureSpec(layers, positions="users", normalise="rms")


def needed(contenders: Sequence[Contender], num_blocks: int) -> tuple[Read, ...]:
    """Return what to read so that the reads of all detectors can be cut from it.

    What is pooled is read at every layer, as other studies read it, or cut from the single tokens
    where a detector asks for these.
    """
    own = [read for contender in contenders for read in contender.unfitted(num_blocks).reads]
    found: dict[Read, None] = {}
    for read in own:
        if not isinstance(read, CaptureSpec) or not read.is_pooled or read.site == "final_norm":
            found[read] = None
        elif read.positions != "last" and replace(read, pool="none") in own:
            continue
        else:
            found[replace(read, layers=tuple(range(num_blocks)))] = None
    return tuple(found)


def narrowed(readings: Readings, reads: Sequence[Read], *, num_blocks: int) -> Readings:
    """Return readings that hold just some reads, cut from reads of more layers or single tokens.

    Args:
        readings: What was captured.
        reads: What a detector wants to see.
        num_blocks: Of the model: layers from its end are counted from there.

    Raises:
        CapabilityError: A layer was not captured.
    """
    return Readings({read: _values(readings, read, num_blocks) for read in reads})


def _values(readings: Readings, wanted: Read, num_blocks: int) -> Values:
    if wanted in readings.values:
        return readings.values[wanted]
    for held, values in readings.values.items():
        if not isinstance(held, CaptureSpec) or not isinstance(wanted, CaptureSpec):
            continue
        if held == replace(wanted, pool="none"):
            return _pooled(readings.ragged(held), wanted.pool)
        if replace(held, layers=wanted.layers) != wanted or not isinstance(values, np.ndarray):
            continue
        places = {layer % num_blocks: place for place, layer in enumerate(held.layers)}
        layers = [layer % num_blocks for layer in wanted.layers]
        if set(layers) <= set(places):
            chosen: Array = values[:, [places[layer] for layer in layers]]
            return chosen
    raise CapabilityError(f"{wanted} was not captured: the readings hold {list(readings.values)}")


def _pooled(states: Sequence[Array], pool: str) -> Array:
    """Return the mean or the maximum over the tokens of each prompt, [prompt, layer, d_model]."""
    over = np.mean if pool == "mean" else np.max
    return np.stack([over(tokens, axis=1) for tokens in states])


@dataclass(frozen=True)
class Pool:
    """Labelled prompts with their readings."""

    readings: Readings
    targets: Targets
    num_blocks: int

    @classmethod
    def read(
        cls, inputs: StudyInputs, examples: Sequence[Example], reads: Sequence[Read]
    ) -> "Pool":
        """Read labelled prompts.

        Raises:
            DataError: A prompt has no label, or all have the same.
        """
        return cls(inputs.read(examples, reads), targets_of(examples), inputs.num_blocks)

    @property
    def unsafe(self) -> Array:
        """Which prompts are unsafe, [prompt]."""
        unsafe: Array = self.targets.unsafe
        return unsafe

    def take(self, rows: Array) -> "Pool":
        """Return some prompts, in the order asked for."""
        category = self.targets.category
        targets = Targets(
            unsafe=self.targets.unsafe[rows],
            group=self.targets.group[rows],
            source=self.targets.source[rows],
            category=None if category is None else category[rows],
        )
        return Pool(self.readings.take(rows), targets, self.num_blocks)

    def for_reads(self, reads: Sequence[Read]) -> "Pool":
        """Return the same prompts with the readings that a detector wants to see, cut once."""
        return replace(self, readings=narrowed(self.readings, reads, num_blocks=self.num_blocks))

    def fit(self, contender: Contender, *, seed: int) -> Detector:
        """Return a contender's detector, fitted on all prompts."""
        detector = contender.unfitted(self.num_blocks)
        return detector.fit(self.for_reads(detector.reads).readings, self.targets, seed=seed)

    def score(self, detector: Detector) -> Array:
        """Return the scores [prompt] of a fitted detector."""
        return detector.decision_function(self.for_reads(detector.reads).readings)


@dataclass(frozen=True)
class Scored:
    """What detectors make of one test set."""

    name: str
    unsafe: Array
    """[prompt]."""
    scores: tuple[Array, ...]
    """[prompt] of each detector."""


def score_tests(
    inputs: StudyInputs, detectors: Sequence[Detector], reads: Sequence[Read]
) -> tuple[Scored, ...]:
    """Score all test sets, one in memory at a time, and add to sets of one label their pool.

    A set of unsafe prompts only gets the safe prompts of the set that `pools` names for it, or of
    the in-distribution set.

    Args:
        inputs: Whose tests are scored.
        detectors: Fitted.
        reads: What is read of each prompt; the detectors' own reads are cut from it.
    """
    found = {scored.name: scored for scored in _scored(inputs, detectors, reads)}
    return tuple(_with_pool(scored, found, inputs.pools) for scored in found.values())


def _scored(
    inputs: StudyInputs, detectors: Sequence[Detector], reads: Sequence[Read]
) -> Iterator[Scored]:
    for name, examples in inputs.tests.items():
        inputs.report(f"scoring {name}")
        readings = inputs.read(examples, reads)
        scores = tuple(
            detector.decision_function(
                narrowed(readings, detector.reads, num_blocks=inputs.num_blocks)
            )
            for detector in detectors
        )
        yield Scored(name, np.array([e.label == "unsafe" for e in examples]), scores)


def _with_pool(scored: Scored, found: Mapping[str, Scored], pools: Mapping[str, str]) -> Scored:
    pool = found.get(pools.get(scored.name, IN_DISTRIBUTION))
    if pool is None or not scored.unsafe.all():
        return scored
    safe = ~pool.unsafe
    return Scored(
        scored.name,
        np.concatenate([scored.unsafe, pool.unsafe[safe]]),
        tuple(
            np.concatenate([a, b[safe]]) for a, b in zip(scored.scores, pool.scores, strict=True)
        ),
    )


def placing(tests: Sequence[Scored], number: int, *, threshold: float) -> dict[str, Cell]:
    """Return what one detector makes of the test sets.

    Args:
        tests: Scored.
        number: The detector's place among those that scored them.
        threshold: From validation prompts; scores at or over it are flagged.

    Returns:
        AUROC and recall at 1% in distribution, their means over the outside sets that have both
        labels (or a pool), and the mean share that is flagged of the sets of safe prompts only.
    """
    inside = in_distribution(tests)
    others = [(scored.scores[number], scored.unsafe) for scored in outside(tests)]
    safe_only = [scores for scores, unsafe in others if not unsafe.any()]
    return {
        "test_auroc": auroc(inside.scores[number], inside.unsafe),
        "test_recall": recall_at_fpr(inside.scores[number], inside.unsafe, fpr=FPR),
        "outside_auroc": mean([auroc(*of_set) for of_set in others]),
        "outside_recall": mean([recall_at_fpr(*of_set, fpr=FPR) for of_set in others]),
        "safe_sets_flagged": mean([flagged_rate(s, threshold=threshold) for s in safe_only]),
    }


PLACING = ("test_auroc", "test_recall", "outside_auroc", "outside_recall", "safe_sets_flagged")
"""The columns of `placing`."""


def folds_of_sources(targets: Targets, *, num_folds: int, seed: int) -> Array | None:
    """Part prompts by source, so that each fold holds sources of both labels.

    Args:
        targets: Whose sources; a source counts as unsafe if most of its prompts are.
        num_folds: Fewer are made where a label has fewer sources.
        seed: Of the draw.

    Returns:
        A fold [prompt]; None if a label has a single source.
    """
    names, places = np.unique(targets.source, return_inverse=True)
    share = np.bincount(places, weights=targets.unsafe) / np.bincount(places)
    labels = [np.flatnonzero(share <= 0.5), np.flatnonzero(share > 0.5)]
    possible = min(num_folds, *map(len, labels))
    if possible < 2:
        return None
    generator = np.random.default_rng(seed)
    fold_of = np.zeros(len(names), int)
    for of_label in labels:
        fold_of[of_label] = generator.permutation(len(of_label)) % possible
    folds: Array = fold_of[places]
    return folds


def in_distribution(tests: Sequence[Scored]) -> Scored:
    """Return the test set of the training sources.

    Raises:
        DataError: There is none.
    """
    for scored in tests:
        if scored.name == IN_DISTRIBUTION:
            return scored
    raise DataError(
        f"there is no test set {IN_DISTRIBUTION!r}, only {[scored.name for scored in tests]}"
    )


def outside(tests: Sequence[Scored]) -> tuple[Scored, ...]:
    """Return the test sets of other sources."""
    return tuple(scored for scored in tests if scored.name != IN_DISTRIBUTION)

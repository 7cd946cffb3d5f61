"""Sample size: how many labelled prompts each detector needs.

For each number of prompts a class and each seed one draw is made, and every detector, on whatever
layers, is fitted on the very same prompts. Draws of one seed are nested: a larger one holds the
smaller ones.

Few prompts call for few parameters: beside the papers' detectors stand some that read more of the
prompt, and weigh less of it.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025) and Efficient LLM Moderation with
Multi-Layer Latent Prototypes (2026), arXiv 2502.16174 v2 and v3, the sample-size studies.

Differs: in the released code each layer draws prompts of its own; F1 is also given at a threshold
from validation prompts, not at one half only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Detector
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, middle_layer, spread_layers
from demur.metrics.auroc import auroc
from demur.metrics.f1 import f1
from demur.studies._contenders import (
    Contender,
    Pool,
    Scored,
    in_distribution,
    needed,
    outside,
    score_tests,
    user_mean,
)
from demur.studies._few import LAST_LAYER, MULTI_LAYER, Measured, claims, over_last_layer
from demur.studies._measures import best_f1_threshold, mean, spread
from demur.studies._study import Cell, Plot, Row, Series, StudyInputs, StudyResult

__all__ = ["SampleSize"]

NEEDS = ("matplotlib",)

MEASURES = ("f1", "f1_at_half", "auroc", "outside_auroc")
COLUMNS = (
    "detector",
    "prompts_a_class",
    "draws",
    *(column for measure in MEASURES for column in (measure, f"{measure}_sd")),
)


@dataclass(frozen=True)
class SampleSize:
    """Detectors fitted on more and more prompts."""

    sizes: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 6000)
    """Prompts a class, over 1; sizes that the training prompts cannot fill are left out."""
    methods: tuple[str, ...] = (
        "LPM, last layer", "LPM, middle layer", "MLPM", "linear, last token", "linear, user mean",
        "linear, both", "nearest_mean", "nearest_mean, user mean", "layer_vote",
        "layer_vote, both", "mlp", "tfidf",
    )  # fmt: skip
    """Which of the detectors are compared."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a detector and size, with means and deviations over the seeds."""
        contenders = self._chosen(inputs.num_blocks)
        reads = needed(contenders, inputs.num_blocks)
        train = Pool.read(inputs, inputs.train, reads)
        val = Pool.read(inputs, inputs.val, reads)
        fitted: list[_Fitted] = []
        failed: dict[str, str] = {}
        for size in self._possible(train.unsafe):
            inputs.report(f"fitting on {size} prompts a class")
            for seed in inputs.seeds:
                drawn = train.take(draw(train.unsafe, size=size, seed=seed))
                for contender in contenders:
                    try:
                        detector = drawn.fit(contender, seed=seed)
                    except DataError as error:  # a method may need more prompts than these
                        failed.setdefault(f"{contender.label} on {size} a class", str(error))
                        continue
                    on_val = val.score(detector)
                    threshold = best_f1_threshold(on_val, val.unsafe)
                    val_auroc = auroc(on_val, val.unsafe)
                    fitted.append(_Fitted(contender, size, seed, detector, threshold, val_auroc))
        tests = score_tests(inputs, [one.detector for one in fitted], reads)
        found = [_measured(one, tests, number) for number, one in enumerate(fitted)]
        rows = _rows([contender.label for contender in contenders], found)
        return StudyResult(
            title="Sample size",
            question="How well does each detector do on few labelled prompts, and where does more "
            "data stop to help?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=tuple(_curve(rows, measure) for measure in ("f1", "auroc", "outside_auroc")),
            findings=(
                *_winners(rows),
                *over_last_layer(found),
                *claims(found),
                *(f"{what} could not be fitted: {why}." for what, why in failed.items()),
            ),
        )

    def _chosen(self, num_blocks: int) -> list[Contender]:
        known = {contender.label: contender for contender in contenders_for(num_blocks)}
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise ConfigError(f"methods holds {unknown}: expected some of {list(known)}")
        return [known[name] for name in self.methods]

    def _possible(self, unsafe: Array) -> list[int]:
        most = int(min(unsafe.sum(), (~unsafe).sum()))
        sizes = sorted({size for size in self.sizes if 1 < size <= most})
        if not sizes:
            raise ConfigError(f"sizes is {self.sizes}: there are {most} prompts a class")
        return sizes


@dataclass(frozen=True)
class _Fitted:
    contender: Contender
    size: int
    seed: int
    detector: Detector
    threshold: float
    """Of the best F1 on validation prompts."""
    val_auroc: float | None


def contenders_for(num_blocks: int) -> tuple[Contender, ...]:
    """Return the detectors that this study knows, for a model of some depth."""
    every, middle = tuple(range(num_blocks)), middle_layer(num_blocks)
    some = spread_layers(num_blocks, start=1 / 3, count=10)
    both = (CaptureSpec(every), user_mean(every))
    return (
        Contender(LAST_LAYER, "prototypes", (num_blocks - 1,)),
        Contender("LPM, middle layer", "prototypes", middle),
        Contender(MULTI_LAYER, "layered_prototypes"),
        Contender("linear, last token", "linear", reads=(CaptureSpec(some),)),
        Contender("linear, user mean", "linear", reads=(user_mean(some),)),
        Contender("linear, both", "linear", reads=(CaptureSpec(some), user_mean(some))),
        Contender("nearest_mean", "nearest_mean"),
        Contender("nearest_mean, user mean", "nearest_mean", reads=(user_mean(middle),)),
        Contender("layer_vote", "layer_vote", midpoint=0.5),
        Contender("layer_vote, both", "layer_vote", reads=both, midpoint=0.5),
        Contender("mlp", "mlp"),
        Contender("tfidf", "tfidf"),
    )


def draw(unsafe: Array, *, size: int, seed: int) -> Array:
    """Return the rows of a draw, in order; those of a smaller size are among them.

    Args:
        unsafe: [prompt].
        size: Prompts a class.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(np.flatnonzero(unsafe == label))[:size] for label in (0, 1)]
    return np.sort(np.concatenate(rows))


def _measured(one: _Fitted, tests: Sequence[Scored], number: int) -> Measured:
    inside, others = in_distribution(tests), outside(tests)
    scores = inside.scores[number]
    values = {
        "f1": f1(scores, inside.unsafe, threshold=one.threshold),
        "f1_at_half": f1(scores, inside.unsafe, threshold=one.contender.midpoint),
        "auroc": auroc(scores, inside.unsafe),
        "outside_auroc": mean([auroc(of.scores[number], of.unsafe) for of in others]),
        "val_auroc": one.val_auroc,
    }
    return Measured(one.contender.label, one.size, one.seed, values)


def _rows(labels: Sequence[str], found: Sequence[Measured]) -> list[Row]:
    rows: list[Row] = []
    for label in labels:
        for size in dict.fromkeys(one.size for one in found if one.label == label):
            those = [one for one in found if (one.label, one.size) == (label, size)]
            row: dict[str, Cell] = {"detector": label, "prompts_a_class": size}
            row["draws"] = len(those)
            for measure in MEASURES:
                numbers = [v for one in those if (v := one.values[measure]) is not None]
                row[measure] = mean(numbers)
                row[f"{measure}_sd"] = spread(numbers) if numbers else None
            rows.append(row)
    return rows


def _winners(rows: Sequence[Row]) -> list[str]:
    """Say at each size which detector has the highest mean AUROC, in distribution and outside."""
    findings = []
    for size in dict.fromkeys(row["prompts_a_class"] for row in rows):
        words = []
        for column, where in (("auroc", "in distribution"), ("outside_auroc", "outside")):
            known = [r for r in rows if r["prompts_a_class"] == size and r[column] is not None]
            if known:
                best = max(known, key=lambda row: float(row[column] or 0))
                words.append(f"{best['detector']} {where} ({float(best[column] or 0):.4f})")
        findings.append(f"{size} prompts a class, highest AUROC: {', '.join(words)}.")
    return findings


def _curve(rows: Sequence[Row], measure: str) -> Plot:
    series = []
    for label in dict.fromkeys(str(row["detector"]) for row in rows):
        points = [row for row in rows if row["detector"] == label and row[measure] is not None]
        x, y, error = (
            tuple(float(row[column] or 0) for row in points)
            for column in ("prompts_a_class", measure, f"{measure}_sd")
        )
        series.append(Series(label, x, y, error))
    title = f"{measure.replace('_', ' ')} by number of training prompts"
    return Plot(
        measure, title, "prompts a class", measure, tuple(s for s in series if s.x), is_log_x=True
    )

"""Layers: which one tells unsafe prompts from safe ones best, and whether validation finds it.

A detector is fitted to the last token's state at each layer by itself, once a seed. The layer is
chosen on validation prompts, and once more on sources held out of the fit; both choices are
compared with the last layer, which the papers take by default, and with the layer that hindsight
would take.

Paper: Training-Free LLM Moderation via Latent Prototypes (2025), arXiv 2502.16174 v2, the layer
study; Maybe I Should Not Answer That, but... (2025), v1, which finds later layers alike.

Differs: the paper picks the best layer on its test sets; the last block's state is read before the
final norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.metrics.auroc import auroc
from demur.studies._contenders import Contender, Pool, folds_of_sources, needed
from demur.studies._measures import claim, mean
from demur.studies._repeats import COLUMNS as MEASURES
from demur.studies._repeats import SHARE, Repeated, best_of, judged_by, repeat
from demur.studies._study import Cell, Plot, Row, Series, StudyInputs, StudyResult, shown

__all__ = ["Layers"]

NEEDS = ("matplotlib",)

COLUMNS = ("detector", "layer", "draws", "held_out_auroc", *MEASURES, "chosen")
ALIKE = 0.02
"""AUROC by which the layers from half of the depth on may differ and still count as alike."""
CHOICES = {"validation": "val_auroc", "held-out sources": "held_out_auroc"}
"""What a layer is chosen by, and the column that says how good it is there."""


@dataclass(frozen=True)
class Layers:
    """A single-layer detector at each layer."""

    methods: tuple[str, ...] = ("prototypes", "linear", "nearest_mean")
    """Detectors that read one layer, by their public names."""
    num_folds: int = 3
    """Parts in which sources are held out, 2 or more."""
    share: float = SHARE
    """Of the training prompts of each label that one seed draws, over 0 to 1."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a detector and layer."""
        contenders = [
            Contender(f"{method}, layer {layer}", method, reads=(CaptureSpec((layer,)),))
            for method in self.methods
            for layer in range(inputs.num_blocks)
        ]
        reads = needed(contenders, inputs.num_blocks)
        found = repeat(inputs, contenders, reads, share=self.share)
        held_out = self._held_out(inputs, Pool.read(inputs, inputs.train, reads), contenders)
        rows: list[dict[str, Cell]] = [
            {
                "detector": of.contender.method,
                "layer": number % inputs.num_blocks,
                "draws": len(of.of_seeds),
                "held_out_auroc": held_out[number],
                **of.cells(),
                "chosen": None,
            }
            for number, of in enumerate(found)
        ]
        findings = []
        for place, method in enumerate(self.methods):
            those = slice(place * inputs.num_blocks, (place + 1) * inputs.num_blocks)
            findings.append(_compare(rows[those]))
            findings += _claims(method, found[those])
        return StudyResult(
            title="Layers",
            question="Which single layer separates unsafe from safe prompts best, and is it found "
            "without looking at the test sets?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=(
                _curves(rows, "test_auroc", "in distribution"),
                _curves(rows, "outside_auroc", "mean over outside sets"),
                _curves(rows, "held_out_auroc", "sources held out of the fit"),
            ),
            findings=tuple(findings),
        )

    def _held_out(
        self, inputs: StudyInputs, train: Pool, contenders: Sequence[Contender]
    ) -> list[float | None]:
        """Return the mean AUROC of each contender on the folds of sources that it did not see."""
        seed = inputs.seeds[0]
        folds = folds_of_sources(train.targets, num_folds=self.num_folds, seed=seed)
        if folds is None:
            return [None] * len(contenders)
        found: list[list[float | None]] = [[] for _ in contenders]
        for fold in np.unique(folds):
            inputs.report(f"holding out sources, part {fold + 1} of {folds.max() + 1}")
            rest, left_out = _parted(train, folds == fold)
            for number, contender in enumerate(contenders):
                scores = left_out.score(rest.fit(contender, seed=seed))
                found[number].append(auroc(scores, left_out.unsafe))
        return [mean(of_contender) for of_contender in found]


def _parted(pool: Pool, is_left_out: Array) -> tuple[Pool, Pool]:
    return pool.take(np.flatnonzero(~is_left_out)), pool.take(np.flatnonzero(is_left_out))


def _compare(rows: Sequence[dict[str, Cell]]) -> str:
    """Mark the layers of one detector that are chosen, and say what the choice costs."""
    last, middle = rows[-1], rows[:-1] or rows
    judged_by = "test_auroc" if last["outside_auroc"] is None else "outside_auroc"
    best = max(rows, key=lambda row: _number(row, judged_by))
    words = [f"last (layer {last['layer']}) {_both(last)}"]
    for name, column in CHOICES.items():
        if middle[0][column] is None:
            continue
        row = max(middle, key=lambda row: _number(row, column))
        row["chosen"] = name if row["chosen"] is None else f"{row['chosen']}, {name}"
        gap = _number(best, judged_by) - _number(row, judged_by)
        words.append(f"chosen by {name} (layer {row['layer']}) {_both(row)}, gap {gap:.4f}")
    words.append(f"best in hindsight (layer {best['layer']}) {_both(best)}")
    return f"{last['detector']}, AUROC in distribution / outside: {'; '.join(words)}."


def _claims(method: str, found: Sequence[Repeated]) -> list[str]:
    """Say of one detector whether the papers' claims hold; a layer in the middle is chosen."""
    if len(found) < 2:
        return []
    measure = judged_by(found)
    later = [of.mean(measure) or 0.0 for of in found[len(found) // 2 :]]
    chosen = best_of(found[:-1], "val_auroc")
    gap = chosen.minus(found[-1], measure)
    claims = [
        claim(
            f"v1: detectors on later layers do about the same ({method})",
            holds=max(later) - min(later) <= ALIKE,
            numbers=f"{measure} from half of the depth on is {min(later):.4f} to {max(later):.4f}; "
            f"up to {ALIKE} apart counts as the same",
        )
    ]
    if gap is not None:
        claims.append(
            claim(
                f"v2: a layer in the middle is better than the last ({method})",
                holds=gap.is_higher,
                numbers=f"{chosen.contender.label}, which validation takes, is ahead by {gap} in "
                f"{measure}",
            )
        )
    return claims


def _both(row: Row) -> str:
    return f"{shown(row['test_auroc'])} / {shown(row['outside_auroc'])}"


def _number(row: Row, column: str) -> float:
    """Return a cell as a number; what is not known is the least."""
    value = row[column]
    return float(value) if value is not None else 0.0


def _curves(rows: Sequence[Row], column: str, where: str) -> Plot:
    series = []
    for method in dict.fromkeys(str(row["detector"]) for row in rows):
        points = [
            (float(row["layer"]), float(row[column]))  # type: ignore[arg-type]  # a number
            for row in rows
            if row["detector"] == method and row[column] is not None
        ]
        series.append(Series(method, tuple(x for x, _ in points), tuple(y for _, y in points)))
    return Plot(column, f"AUROC by layer, {where}", "layer", "AUROC", tuple(series))

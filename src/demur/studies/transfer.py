"""Transfer: whether a detector knows unsafe prompts, or the sources it was fitted on.

Each training source in turn is left out of the fit; the detector then judges its prompts against
validation prompts of the other label and of other sources. Controls stand beside it: words alone,
length alone, and hidden states with shuffled labels, which must know nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demur.core.errors import DataError
from demur.core.protocols import Detector
from demur.core.readings import Array, Readings
from demur.core.reads import middle_layer
from demur.metrics.auroc import auroc
from demur.studies._contenders import Contender, Pool, narrowed, needed
from demur.studies._measures import FPR, mean, threshold_at
from demur.studies._study import Cell, HeatMap, Row, StudyInputs, StudyResult

__all__ = ["Transfer"]

NEEDS = ("matplotlib",)

SHUFFLED = "shuffled labels"


@dataclass(frozen=True)
class Transfer:
    """Detectors on a source that their fit did not see."""

    methods: tuple[str, ...] = ("prototypes", "nearest_mean", "layered_prototypes", "linear")
    """Detectors by their public names, each with the reads it has by default."""
    controls: tuple[str, ...] = ("tfidf", "length", SHUFFLED)
    """What has no share in the hidden states, and `shuffled labels`, a `prototypes` detector of
    permuted labels."""
    min_prompts: int = 20
    """A source with fewer training prompts is not left out, 1 or more."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a source that is left out."""
        contenders = [
            _contender(name, inputs.num_blocks) for name in (*self.methods, *self.controls)
        ]
        reads = needed(contenders, inputs.num_blocks)
        train = Pool.read(inputs, inputs.train, reads)
        val = Pool.read(inputs, inputs.val, reads)
        rows: list[Row] = []
        for source in self._sources(train):
            inputs.report(f"leaving out {source}")
            rows.append(_left_out(source, train, val, contenders, seed=inputs.seeds[0]))
        columns = tuple(rows[0])
        return StudyResult(
            title="Transfer",
            question="How well does a detector judge a source that it was not fitted on, and do "
            "words, length or chance explain it?",
            columns=columns,
            rows=tuple(rows),
            plots=(
                _map("auroc", "AUROC on a source left out", rows, contenders),
                _map("flagged", f"Share flagged at {FPR:.0%} false positives", rows, contenders),
            ),
            findings=_findings(rows, contenders),
        )

    def _sources(self, train: Pool) -> list[str]:
        """Return the sources that can be left out: enough prompts, and both labels without them."""
        names, counts = np.unique(train.targets.source, return_counts=True)
        found = [
            str(name)
            for name, count in zip(names, counts, strict=True)
            if count >= self.min_prompts
            and len(np.unique(train.unsafe[train.targets.source != name])) == 2
        ]
        if not found:
            raise DataError(
                f"the training prompts are of {names.tolist()}: expected several sources with "
                f"{self.min_prompts} prompts or more, and both labels without each"
            )
        return found


def _contender(name: str, num_blocks: int) -> Contender:
    if name == SHUFFLED:
        return Contender(SHUFFLED, "prototypes", middle_layer(num_blocks))
    return Contender(name, name)


def _left_out(
    source: str, train: Pool, val: Pool, contenders: Sequence[Contender], *, seed: int
) -> Row:
    """Return what detectors that were fitted without a source make of it."""
    is_of_source = train.targets.source == source
    rest = train.take(np.flatnonzero(~is_of_source))
    held = train.readings.take(np.flatnonzero(is_of_source))
    others = val.readings.take(np.flatnonzero(val.targets.source != source))
    unsafe = train.unsafe[is_of_source]
    other_unsafe = val.unsafe[val.targets.source != source]
    kind = "both" if len(np.unique(unsafe)) == 2 else ("unsafe" if unsafe[0] else "safe")
    row: dict[str, Cell] = {"source": source, "label": kind, "prompts": len(held)}
    for contender in contenders:
        pool = _shuffled(rest, seed=seed) if contender.label == SHUFFLED else rest
        detector = pool.fit(contender, seed=seed)
        scores, other_scores = (
            _scores(detector, readings, num_blocks=train.num_blocks) for readings in (held, others)
        )
        opposite = other_unsafe != unsafe[0] if kind != "both" else np.zeros(len(others), bool)
        row[f"{contender.label}: auroc"] = auroc(
            np.concatenate([scores, other_scores[opposite]]),
            np.concatenate([unsafe, other_unsafe[opposite]]),
        )
        row[f"{contender.label}: flagged"] = _flagged(scores, other_scores[~other_unsafe])
    return row


def _scores(detector: Detector, readings: Readings, *, num_blocks: int) -> Array:
    """Return the scores [prompt]; there may be no prompts."""
    if not len(readings):
        return np.zeros(0)
    return detector.decision_function(narrowed(readings, detector.reads, num_blocks=num_blocks))


def _flagged(scores: Array, safe_scores: Array) -> float | None:
    """Return the share over the threshold of other sources; None if they hold no safe prompt."""
    if not len(safe_scores):
        return None
    return float((scores > threshold_at(safe_scores)).mean())


def _shuffled(pool: Pool, *, seed: int) -> Pool:
    """Return the same prompts with their labels in another order."""
    unsafe = np.random.default_rng(seed).permutation(pool.unsafe)
    return replace(pool, targets=replace(pool.targets, unsafe=unsafe))


def _map(column: str, title: str, rows: Sequence[Row], contenders: Sequence[Contender]) -> HeatMap:
    return HeatMap(
        name=column,
        title=title,
        rows=tuple(f"{row['source']} ({row['label']})" for row in rows),
        columns=tuple(contender.label for contender in contenders),
        values=tuple(
            tuple(_number(row[f"{contender.label}: {column}"]) for contender in contenders)
            for row in rows
        ),
    )


def _number(cell: Cell) -> float | None:
    return None if cell is None else float(cell)


def _findings(rows: Sequence[Row], contenders: Sequence[Contender]) -> tuple[str, ...]:
    """Say for each detector how it does on the mean, and where worst."""
    findings = []
    for contender in contenders:
        values = {str(row["source"]): _number(row[f"{contender.label}: auroc"]) for row in rows}
        known = {source: value for source, value in values.items() if value is not None}
        if not known:
            continue
        worst = min(known, key=lambda source: known[source])
        rates = [
            f"{name} {rate:.3f}"
            for name, label in (("recall", "unsafe"), ("false positives", "safe"))
            if (rate := _mean_rate(rows, contender, label)) is not None
        ]
        findings.append(
            f"{contender.label}: mean AUROC {np.mean(list(known.values())):.4f}, lowest on {worst} "
            f"({known[worst]:.4f}); at {FPR:.0%} on other sources: {', '.join(rates)}."
        )
    return tuple(findings)


def _mean_rate(rows: Sequence[Row], contender: Contender, label: str) -> float | None:
    those = [row for row in rows if row["label"] == label]
    return mean([_number(row[f"{contender.label}: flagged"]) for row in those])

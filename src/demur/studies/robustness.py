"""Robustness: whether what stands around a prompt, or how it is written, changes a verdict.

Unsafe and safe prompts are read as they are and after each of some sixty transformations: twenty
system prompts, white space, case, wording, wrappers, truncation, and harmless padding of up to
4,096 tokens with the prompt at its start, middle or end. Dialogues stand beside them, with the
unsafe request early, late, spread over turns, or in a tool result. Thresholds are those that the
detectors are used with; each transformation is compared with the same prompts as they are.

Differs: no translations, which would take another model; the collection's sets in other languages
stand for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demur.core.examples import Example, Label
from demur.core.readings import Array
from demur.datasets import dialogues
from demur.metrics.auroc import auroc
from demur.metrics.flagged_rate import flagged_rate
from demur.metrics.wilson_interval import wilson_interval
from demur.studies._judges import JudgedStudy, Panel, fitting, prompts_of
from demur.studies._measures import mean
from demur.studies._study import Cell, HeatMap, Plot, Row, Series, StudyInputs, StudyResult, shown
from demur.studies._transformations import Transformation, paddings, short_transformations
from demur.studies.prompting import spread_over

__all__ = ["Robustness"]

NEEDS = ("matplotlib",)

PLAIN = "plain"
DIALOGUE = "dialogue"
ALL_DIALOGUES = "all dialogues"
LABELS: tuple[Label, ...] = ("unsafe", "safe")
RATES = {"unsafe": "recall", "safe": "false_positives"}
"""What the share of flagged prompts of a label is called."""
COLUMNS = (
    "transformation", "family", "detector", "unsafe", "safe", "auroc", "recall", "recall_low",
    "recall_high", "recall_change", "false_positives", "false_positives_low",
    "false_positives_high", "false_positives_change",
)  # fmt: skip


@dataclass(frozen=True)
class Robustness(JudgedStudy):
    """Fitted detectors on prompts in other surroundings."""

    rivals: tuple[str, ...] = ("tfidf",)
    partners: tuple[str, ...] = ()
    num_prompts: int = 40
    """Most prompts of each label, over 0."""
    max_words: int = 80
    """Of a prompt, over 0."""
    lengths: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    """Of the padding, in tokens; what a model's context cannot take is left out."""
    num_padded: int = 8
    """Most prompts of each label that are padded, 0 or more: long prompts take long to read."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a transformation and detector."""
        panel = self.panel(inputs)
        prompts = [
            example
            for label in LABELS
            for example in spread_over(
                prompts_of(inputs, label, max_words=self.max_words), self.num_prompts
            )
        ]
        plain = _Judged.of(panel, inputs, prompts)
        rows = _rows(PLAIN, PLAIN, plain, None)
        rows += self._changed(short_transformations(), panel, inputs, plain)
        few = [e for label in LABELS for e in spread_over(_of(prompts, label), self.num_padded)]
        padded = plain.among(np.array([prompts.index(example) for example in few], int))
        rows += self._changed(paddings(self.lengths), panel, inputs, padded)
        rows += _dialogues(panel, inputs)
        return StudyResult(
            title="Robustness",
            question="Do system prompts, spelling, wrappers, padding or the place of a request in "
            "a dialogue change what a detector with a frozen threshold flags?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=_plots(rows, panel.names, lengths=self.lengths),
            findings=(*_findings(rows, panel.names), *panel.left_out),
        )

    def _changed(
        self,
        transformations: Sequence[Transformation],
        panel: Panel,
        inputs: StudyInputs,
        plain: "_Judged",
    ) -> list[Row]:
        """Return the rows of transformations; those that the model can take no prompt of go."""
        inputs.report(f"reading prompts after {len(transformations)} transformations")
        changed = [
            _changed(example, transformation, seed=(inputs.seeds[0], row))
            for transformation in transformations
            for row, example in enumerate(plain.examples)
        ]
        kept = np.flatnonzero(fitting(inputs, changed))
        if not len(kept):
            return []
        judged = _Judged.of(panel, inputs, [changed[row] for row in kept])
        rows = []
        for number, transformation in enumerate(transformations):
            places = np.flatnonzero(kept // len(plain.examples) == number)
            if len(places):
                before = plain.among(kept[places] % len(plain.examples))
                after = judged.among(places)
                rows += _rows(transformation.name, transformation.family, after, before)
        return rows


def _changed(example: Example, transformation: Transformation, *, seed: tuple[int, int]) -> Example:
    """Return a prompt after a transformation."""
    generator = np.random.default_rng(seed)
    return replace(example, chat=transformation.change(example.chat, generator))


@dataclass(frozen=True)
class _Judged:
    """Prompts with what all judges make of them."""

    examples: Sequence[Example]
    margins: dict[str, Array]
    """[prompt], by judge; 0 or more is flagged."""

    @classmethod
    def of(cls, panel: Panel, inputs: StudyInputs, examples: Sequence[Example]) -> "_Judged":
        return cls(examples, panel.margins(inputs, examples))

    @property
    def unsafe(self) -> Array:
        """Which prompts are unsafe, [prompt]."""
        return np.array([example.label == "unsafe" for example in self.examples])

    @property
    def groups(self) -> Array:
        """The group of each prompt, [prompt]."""
        return np.array([example.group_key for example in self.examples])

    def among(self, rows: Array) -> "_Judged":
        """Return some of the prompts."""
        return _Judged(
            [self.examples[row] for row in rows.tolist()],
            {name: margins[rows] for name, margins in self.margins.items()},
        )


def _of(examples: Sequence[Example], label: Label) -> list[Example]:
    return [example for example in examples if example.label == label]


def _dialogues(panel: Panel, inputs: StudyInputs) -> list[Row]:
    """Return the rows of dialogues, by their shape."""
    inputs.report("reading dialogues")
    examples = dialogues.load()
    kept = np.flatnonzero(fitting(inputs, examples)).tolist()
    if not kept:
        return []
    judged = _Judged.of(panel, inputs, [examples[row] for row in kept])
    kinds = np.array([str(example.kind) for example in judged.examples])
    rows = _rows(ALL_DIALOGUES, DIALOGUE, judged, None)
    for kind in dict.fromkeys(kinds.tolist()):
        of_kind = judged.among(np.flatnonzero(kinds == kind))
        rows += _rows(f"dialogue: {kind}", DIALOGUE, of_kind, None)
    return rows


def _rows(name: str, family: str, judged: _Judged, plain: _Judged | None) -> list[Row]:
    """Return a row a judge.

    Args:
        name: Of the transformation.
        family: Of like ones.
        judged: The prompts after it.
        plain: The same prompts as they are; None if there is nothing to compare with.
    """
    unsafe, groups = judged.unsafe, judged.groups
    rows: list[Row] = []
    for judge, margins in judged.margins.items():
        row: dict[str, Cell] = {
            "transformation": name,
            "family": family,
            "detector": judge,
            "unsafe": int(unsafe.sum()),
            "safe": int((~unsafe).sum()),
            "auroc": auroc(margins, unsafe),
        }
        for label, is_of_label in (("unsafe", unsafe), ("safe", ~unsafe)):
            rate = flagged_rate(margins[is_of_label], threshold=0.0)
            interval = wilson_interval(margins[is_of_label] >= 0, groups[is_of_label])
            row[RATES[label]] = rate
            row[f"{RATES[label]}_low"], row[f"{RATES[label]}_high"] = interval or (None, None)
            before = None
            if plain is not None:
                before = flagged_rate(plain.margins[judge][is_of_label], threshold=0.0)
            row[f"{RATES[label]}_change"] = (
                None if rate is None or before is None else rate - before
            )
        rows.append(row)
    return rows


def _plots(
    rows: Sequence[Row], names: Sequence[str], *, lengths: Sequence[int]
) -> tuple[Plot | HeatMap, ...]:
    families = tuple(dict.fromkeys(str(row["family"]) for row in rows))
    titles = {"recall": "Recall", "false_positives": "Share of safe prompts flagged"}
    maps = tuple(
        HeatMap(
            name=rate,
            title=f"{title}, mean of a family of transformations",
            rows=families,
            columns=tuple(names),
            values=tuple(
                tuple(mean(_numbers(rows, rate, family=f, judge=name)) for name in names)
                for f in families
            ),
        )
        for rate, title in titles.items()
    )
    curves = _padding_curves(rows, names[0], lengths=lengths)
    return (*maps, curves) if curves.series else maps


def _padding_curves(rows: Sequence[Row], judge: str, *, lengths: Sequence[int]) -> Plot:
    """Return recall against the length of the padding, a series a place of the prompt."""
    known = {row["transformation"]: row for row in rows if row["detector"] == judge}
    points: dict[str, list[tuple[float, float]]] = {}
    for padding in paddings(lengths):
        row = known.get(padding.name)
        if row is not None and row["recall"] is not None:
            point = (float(padding.num_tokens), float(row["recall"]))
            points.setdefault(f"prompt at the {padding.place}", []).append(point)
    series = tuple(
        Series(label, tuple(x for x, _ in of), tuple(y for _, y in of))
        for label, of in points.items()
    )
    title = f"Recall of {judge} in harmless padding"
    return Plot("padding", title, "tokens of padding", "recall", series, is_log_x=True)


def _numbers(rows: Sequence[Row], column: str, *, family: str, judge: str) -> list[float | None]:
    cells = [r[column] for r in rows if r["family"] == family and r["detector"] == judge]
    return [None if cell is None else float(cell) for cell in cells]


def _findings(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """Say for each judge what it flags of plain prompts, and what changes that most."""
    findings = []
    for name in names:
        own = [row for row in rows if row["detector"] == name]
        plain = own[0]
        changed = [row for row in own if row["recall_change"] is not None]
        told = [
            f"{name}: recall {shown(plain['recall'])} and false positives "
            f"{shown(plain['false_positives'])} on plain prompts"
        ]
        if changed:
            lowest = min(changed, key=lambda row: float(row["recall_change"] or 0))
            most = max(changed, key=lambda row: float(row["false_positives_change"] or 0))
            told += [
                f"recall falls most under {lowest['transformation']} "
                f"({float(lowest['recall_change'] or 0):+.3f})",
                f"false positives rise most under {most['transformation']} "
                f"({float(most['false_positives_change'] or 0):+.3f})",
            ]
        told += [
            f"in dialogues recall {shown(row['recall'])}, false positives "
            f"{shown(row['false_positives'])}"
            for row in own
            if row["transformation"] == ALL_DIALOGUES
        ]
        findings.append("; ".join(told) + ".")
    return tuple(findings)

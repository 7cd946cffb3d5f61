"""Which prompts the detectors of the benchmarks are fitted, calibrated and tested on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.protocols import Detector, Stream, whole
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.datasets import starter
from demur.datasets.demur_data import DemurData
from demur.workflows.capture import Capturer, Report, ignore_progress

WHOLE_UP_TO = 1000
"""Sets of more training rows give their small selection only."""
ONE_LABEL_ONLY = frozenset({"catqa_zh"})
"""Chinese stands in it with unsafe prompts only; its benign side may not be shipped."""
TEST_SPLITS = ("test_id", "test_ood", "utility")


@dataclass(frozen=True)
class Selection:
    """What one detector learns from."""

    name: str
    train: list[Example]
    val: list[Example]
    calibrated_on: str


def shipped_rows(data: DemurData) -> Selection:
    """Return rows whose licence allows a detector that ships, and the starter set."""
    train, val = starter.load("train"), starter.load("val")
    for name, info in data.sets.items():
        if info.may_ship and name not in ONE_LABEL_ONLY:
            whole = data.load(name, ("train",))
            small = data.load(name, ("train",), small=True)
            train += whole if len(whole) <= WHOLE_UP_TO else small
            val += data.load(name, ("val",))
    require_both_labels(train)
    return Selection(
        "shipped",
        train,
        val,
        "the benign validation prompts of public sets: questions, role play, code, school "
        "mathematics, tasks with long passages, safe prompts that sound dangerous",
    )


def research_rows(data: DemurData) -> Selection:
    """Return the small balanced selection of all sets, non-commercial ones included."""
    parts = {
        split: [e for name in data.sets for e in data.load(name, (split,), small=True)]
        for split in ("train", "val")
    }
    return Selection(
        "research",
        parts["train"],
        parts["val"],
        "the benign validation prompts of the small selection",
    )


def require_both_labels(examples: Iterable[Example]) -> None:
    """Refuse a language that occurs with one label only: it would become the label.

    Raises:
        DataError: There is such a language.
    """
    labels: dict[str, set[str]] = {}
    for example in examples:
        if example.language is not None:
            labels.setdefault(example.language, set()).add(str(example.label))
    alone = sorted(language for language, found in labels.items() if len(found) < 2)
    if alone:
        raise DataError(f"these languages occur with one label only: {alone}")


def by_set(examples: Sequence[Example]) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each set and split, in order."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, example in enumerate(examples):
        rows.setdefault((example.source or "", example.split or ""), []).append(row)
    return rows


class SetCapturer:
    """Captures set by set, so that selections which share a set share its shards.

    Args:
        capturer: Of the model.
        report: Called after each shard.
    """

    def __init__(self, capturer: Capturer, *, report: Report = ignore_progress) -> None:
        self._capturer = capturer
        self._report = report

    def __call__(self, examples: Sequence[Example], detector: Detector) -> Stream:
        """Return the readings of examples as a stream of one part."""
        return [(np.arange(len(examples)), self.read(examples, detector.reads))]

    def read(self, examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
        """Return the readings of examples, in order."""
        parts, order = [], []
        for rows in by_set(examples).values():
            chats = [examples[row].chat for row in rows]
            parts.append(whole(self._capturer.parts(chats, reads, report=self._report)))
            order += rows
        return Readings.concatenate(parts).take(np.argsort(order))

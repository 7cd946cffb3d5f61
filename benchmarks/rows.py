"""Which prompts the detectors of the benchmarks are fitted, calibrated and tested on.

Of a public set at most some prompts of each label are used, drawn once: sources weigh the same in a
fit anyhow, and so all benchmarks together take an hour, not a day. The readings of every layer are
kept on disk, and all benchmarks share them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.protocols import Stream, whole
from demur.core.readings import Readings, Values
from demur.core.reads import CaptureSpec, Read
from demur.core.shared_reads import SharedReads
from demur.core.types import Chat
from demur.datasets import pairs, starter, written
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.workflows.capture import Capturer, Report, ignore_progress
from demur.workflows.study_sets import limited
from demur.workflows.suites import COLLECTION, Suite, load_suite

TRAIN_ROWS, VAL_ROWS, TEST_ROWS = 250, 100, 250
"""Most prompts of one public set and label in each role."""
ONE_LABEL_ONLY = frozenset({"catqa_zh"})
"""Chinese stands in it with unsafe prompts only; its benign side may not be shipped."""


@dataclass(frozen=True)
class Selection:
    """What one detector learns from."""

    name: str
    train: list[Example]
    val: list[Example]
    calibrated_on: str


def shipped_rows(data: DemurData) -> Selection:
    """Return rows whose licence allows a detector that ships, and demur's own sets."""
    names = [name for name, of in data.sets.items() if of.may_ship and name not in ONE_LABEL_ONLY]
    selection = Selection(
        "shipped",
        _own("train"),
        _own("val"),
        "the benign validation prompts of public sets and of demur's own: questions, role play, "
        "code, school mathematics, tasks with long passages, safe prompts that sound dangerous, "
        "in 32 languages",
    )
    for name in names:
        _add(selection, data, name, small=False)
    require_both_labels(selection.train)
    return selection


def research_rows(data: DemurData, *, most: int | None = TRAIN_ROWS) -> Selection:
    """Return rows of all sets, non-commercial ones included, and demur's own sets.

    Args:
        data: The collection.
        most: Training prompts of one public set and label; None takes the balanced selection whole.
    """
    selection = Selection(
        "research",
        _own("train"),
        _own("val"),
        "the benign validation prompts of all sets and of demur's own",
    )
    for name in data.sets:
        _add(selection, data, name, small=True, most=most)
    require_both_labels(selection.train)
    return selection


def _own(split: Literal["train", "val"]) -> list[Example]:
    """Return the prompts of demur's own sets."""
    return [*starter.load(split), *written.load(split), *pairs.load(split)]


def _add(
    selection: Selection,
    data: DemurData,
    name: str,
    *,
    small: bool,
    most: int | None = TRAIN_ROWS,
) -> None:
    """Add some prompts of a public set."""
    train, val = (data.load(name, (split,), small=small) for split in ("train", "val"))
    selection.train.extend(limited(train, most, seed=0))
    selection.val.extend(limited(val, VAL_ROWS, seed=0))


def test_suite() -> Suite:
    """Return the test sets, some prompts of each."""
    return load_suite(COLLECTION, limit=TEST_ROWS)


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
    """Captures every layer set by set, so that what shares a set shares its shards.

    The states of every layer stay in memory, some 280 KB a prompt of the embedded model.

    Args:
        engine: Whose model is read.
        report: Called after each batch.
    """

    def __init__(self, engine: TransformersEngine, *, report: Report = ignore_progress) -> None:
        self._capturer = Capturer(engine.loaded)
        self.num_blocks = len(engine.loaded.parts.blocks)
        self._report = report
        layers = tuple(range(self.num_blocks))
        self._every_layer = (
            CaptureSpec(layers),
            CaptureSpec(layers, "user", normalise="rms", pool="mean"),
        )
        self._kept: dict[tuple[Chat, ...], Readings] = {}

    def __call__(self, examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        """Return the readings of examples as a stream of one part."""
        return [(np.arange(len(examples)), self.read(examples, reads))]

    def read(self, examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
        """Return the readings of examples, in order."""
        shared = SharedReads.of([*self._every_layer, *reads], num_blocks=self.num_blocks)
        parts, order = [], []
        for rows in by_set(examples).values():
            chats = tuple(examples[row].chat for row in rows)
            parts.append(
                shared.cut(self._of_set(chats, {shared.shared[of] for of in reads}), reads)
            )
            order += rows
        return Readings.concatenate(parts).take(np.argsort(order))

    def _of_set(self, chats: tuple[Chat, ...], reads: set[Read]) -> Readings:
        """Return readings of a set, those of every layer from memory where they are known."""
        values: dict[Read, Values] = {}
        if not reads.isdisjoint(self._every_layer):
            if chats not in self._kept:
                self._kept[chats] = self._captured(chats, self._every_layer)
            values |= self._kept[chats].values
        others = tuple(reads.difference(self._every_layer))
        if others:
            values |= self._captured(chats, others).values
        return Readings(values)

    def _captured(self, chats: Sequence[Chat], reads: Sequence[Read]) -> Readings:
        return whole(self._capturer.parts(chats, reads, report=self._report))

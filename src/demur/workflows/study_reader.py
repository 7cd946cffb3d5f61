"""Reads the prompts of studies so that all studies share what is on disk.

Readings on disk are keyed by the whole list of prompts and by what is read of them. So a set of
prompts is always captured whole, where a study takes some of its prompts only, and each read by
itself, where a study asks for several.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from demur.core.examples import Example
from demur.core.protocols import whole
from demur.core.readings import Readings, Values
from demur.core.reads import Read
from demur.workflows.capture import Capturer, Report, ignore_progress


class StudyReader:
    """Reads prompts of known sets from shards that hold the sets; other prompts as they come.

    Args:
        capturer: Reads a list of chats.
        sets: The sets of prompts.
    """

    def __init__(self, capturer: Capturer, sets: Iterable[Sequence[Example]]) -> None:
        self._capturer = capturer
        self._sets = [list(examples) for examples in sets]
        self._places = {
            id(example): (number, row)  # of the very object, which the sets keep alive
            for number, examples in enumerate(self._sets)
            for row, example in enumerate(examples)
        }

    def read(
        self,
        examples: Sequence[Example],
        reads: Sequence[Read],
        *,
        report: Report = ignore_progress,
    ) -> Readings:
        """Return the readings of examples, in order.

        Args:
            examples: Of the sets, or others.
            reads: What to read of each.
            report: Called after each batch.

        Raises:
            DataError: A chat cannot be rendered or is longer than the context.
        """
        places = [self._places.get(id(example)) for example in examples]
        known = np.array([place for place in places if place is not None])
        if len(known) < len(places):  # nothing else will ask for these: all reads in one pass
            chats = [example.chat for example in examples]
            return whole(self._capturer.parts(chats, reads, report=report))
        if list(examples) in [*self._sets, []]:
            return self._captured(examples, reads, report)
        parts, order = [], []
        for number in np.unique(known[:, 0]):
            those = np.flatnonzero(known[:, 0] == number)
            readings = self._captured(self._sets[number], reads, report)
            parts.append(readings.take(known[those, 1]))
            order.append(those)
        return Readings.concatenate(parts).take(np.argsort(np.concatenate(order)))

    def _captured(
        self, examples: Sequence[Example], reads: Sequence[Read], report: Report
    ) -> Readings:
        chats = [example.chat for example in examples]
        values: dict[Read, Values] = {}
        for read in reads:
            values |= whole(self._capturer.parts(chats, (read,), report=report)).values
        return Readings(values)

"""Reads that several detectors share: each prompt is captured once, for all of them.

Captures that differ in their layers alone become one capture of all these layers, and each detector
gets its own cut out of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from demur.core.readings import Readings, Values
from demur.core.reads import CaptureSpec, Read


@dataclass(frozen=True)
class SharedReads:
    """What is read once, and where each detector's reads lie in it."""

    num_blocks: int
    """Of the model: layers from its end are counted from there."""
    shared: dict[Read, Read]
    """For each read of a detector, the one that is made."""

    @classmethod
    def of(cls, reads: Sequence[Read], *, num_blocks: int) -> Self:
        """Return what to read for the reads of all detectors."""
        families: dict[CaptureSpec, list[CaptureSpec]] = {}
        for read in dict.fromkeys(reads):
            if isinstance(read, CaptureSpec):
                families.setdefault(replace(read, layers=(-1,)), []).append(read)
        shared: dict[Read, Read] = {read: read for read in reads}
        for members in families.values():
            if len(members) > 1:
                layers = sorted({layer % num_blocks for of in members for layer in of.layers})
                shared |= dict.fromkeys(members, replace(members[0], layers=tuple(layers)))
        return cls(num_blocks, shared)

    @property
    def reads(self) -> tuple[Read, ...]:
        """What to read of each prompt."""
        return tuple(dict.fromkeys(self.shared.values()))

    def cut(self, readings: Readings, reads: Sequence[Read]) -> Readings:
        """Return a detector's readings, cut from the shared ones."""
        return Readings({read: self._values(readings, read) for read in reads})

    def _values(self, readings: Readings, read: Read) -> Values:
        made = self.shared[read]
        values = readings.values[made]
        if made == read or not isinstance(made, CaptureSpec) or not isinstance(read, CaptureSpec):
            return values
        places = [made.layers.index(layer % self.num_blocks) for layer in read.layers]
        if isinstance(values, np.ndarray):
            pooled: Values = values[:, places]
            return pooled
        return tuple(states[places] for states in readings.ragged(made))

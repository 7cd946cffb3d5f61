"""Readings: what was read of a batch of prompts, in the order of the prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from demur.core.errors import CapabilityError, DataError
from demur.core.reads import CaptureSpec, Read

Array = NDArray[Any]
Values = Array | tuple[Array, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Readings:
    """The values of each read.

    A pooled read has an array [prompt, layer, d_model]; any other capture one array
    [layer, position, d_model] a prompt; `Texts` one string a prompt.
    """

    values: Mapping[Read, Values]

    def __post_init__(self) -> None:
        """Refuse reads of different length."""
        lengths = {len(values) for values in self.values.values()}
        if len(lengths) > 1:
            raise DataError(f"the reads hold different numbers of prompts: {sorted(lengths)}")

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(next(iter(self.values.values()), ()))

    def pooled(self, spec: CaptureSpec) -> Array:
        """Return the states of a pooled read: [prompt, layer, d_model], float32.

        Raises:
            CapabilityError: The read was not captured.
            DataError: A state is not finite.
        """
        states = self.captured(spec)
        if not np.isfinite(states).all():
            raise DataError("a captured state is not finite: check the model's dtype and weights")
        return states

    def captured(self, spec: CaptureSpec) -> Array:
        """Return the states of a pooled read as they are: for who checks what comes of them.

        Raises:
            CapabilityError: The read was not captured.
        """
        states = self.values.get(spec)
        if not isinstance(states, np.ndarray):
            raise CapabilityError(
                f"these readings do not hold {spec}: they hold {list(self.values)}"
            )
        return states

    def ragged(self, spec: CaptureSpec) -> tuple[Array, ...]:
        """Return the states of an unpooled read: one array [layer, position, d_model] a prompt.

        Raises:
            CapabilityError: The read was not captured.
            DataError: A state is not finite.
        """
        states = self.values.get(spec)
        if not isinstance(states, tuple):
            raise CapabilityError(
                f"these readings do not hold {spec} by position: they hold {list(self.values)}"
            )
        arrays = [state for state in states if isinstance(state, np.ndarray)]
        if not all(np.isfinite(array).all() for array in arrays):
            raise DataError("a captured state is not finite: check the model's dtype and weights")
        return tuple(arrays)

    def texts(self, read: Read) -> tuple[str, ...]:
        """Return the texts of a `Texts` read.

        Raises:
            CapabilityError: The read was not made.
        """
        texts = self.values.get(read)
        if not isinstance(texts, tuple):
            raise CapabilityError(f"these readings do not hold {read}")
        return texts  # type: ignore[return-value]  # a Texts read holds strings

    def take(self, rows: Sequence[int] | Array) -> Self:
        """Return the readings of some prompts, in the order asked for."""
        indices = np.asarray(rows, dtype=np.int64)
        taken: dict[Read, Values] = {
            read: values[indices]
            if isinstance(values, np.ndarray)
            else tuple(values[i] for i in indices)
            for read, values in self.values.items()
        }
        return type(self)(taken)

    @classmethod
    def concatenate(cls, parts: Sequence["Readings"]) -> Self:
        """Join readings of the same reads, one after another.

        Raises:
            DataError: There are no parts, or their reads differ.
        """
        if not parts or any(set(part.values) != set(parts[0].values) for part in parts):
            raise DataError("only readings of the same reads can be joined, and at least one")
        joined: dict[Read, Values] = {}
        for read in parts[0].values:
            pieces = [part.values[read] for part in parts]
            joined[read] = (
                np.concatenate(pieces)
                if isinstance(pieces[0], np.ndarray)
                else tuple(value for piece in pieces for value in piece)  # type: ignore[assignment]
            )
        return cls(joined)

"""Readings: what was read of a batch of prompts, in the order of the prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from demur.core.errors import CapabilityError, DataError
from demur.core.reads import CaptureSpec, ExtraRead, OwnPass, Read, TentativeRead
from demur.core.types import Chat

Array = NDArray[Any]


class PassRunner(Protocol):
    """What can read more of chats than their prefill."""

    def values_of(self, read: Any, chats: Sequence[Chat]) -> Array:
        """Return the values of a read: [chat, label], float64, or [chat, layer, d_model], float32.

        Raises:
            ConfigError: The model cannot be loaded, or the read does not fit it.
            DataError: A chat cannot be rendered or is longer than the model's context.
        """


@dataclass(frozen=True)
class Deferred:
    """The values of an `ExtraRead`, which is made when somebody looks at them, and only once.

    Taking rows runs nothing, so a detector pays for just the prompts that it asks about.
    """

    runner: PassRunner
    read: ExtraRead
    chats: tuple[Chat, ...]

    @cached_property
    def values(self) -> Array:
        """The log-probabilities [prompt, label], or the states [prompt, layer, d_model]."""
        return self.runner.values_of(self.read, self.chats)

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.chats)

    def __getitem__(self, row: int) -> Array:
        """Return the values of a prompt."""
        values: Array = self.values[row]
        return values

    def __iter__(self) -> Iterator[Array]:
        """Yield the values of each prompt."""
        return iter(self.values)

    def take(self, rows: Array) -> "Deferred":
        """Return the values of some prompts, as yet unseen."""
        return Deferred(self.runner, self.read, tuple(self.chats[row] for row in rows))

    @classmethod
    def concatenate(cls, parts: Sequence["Deferred"]) -> "Deferred":
        """Join the values of one read by one runner."""
        chats = tuple(chat for part in parts for chat in part.chats)
        return cls(parts[0].runner, parts[0].read, chats)


Values = Array | tuple[Array, ...] | tuple[str, ...] | Deferred


@dataclass(frozen=True)
class Readings:
    """The values of each read.

    A pooled read has an array [prompt, layer, d_model]; any other capture one array
    [layer, position, d_model] a prompt; `Texts` one string a prompt. `OwnPass` has an array
    [prompt, label], `AppendedTokens` and `PilotTokens` one like a pooled read, made when they are
    asked for.
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

    def pooled(self, spec: CaptureSpec | TentativeRead) -> Array:
        """Return the states of a pooled or tentative read: [prompt, layer, d_model], float32.

        Raises:
            CapabilityError: The read was not captured.
            DataError: A state is not finite.
        """
        states = self.captured(spec)
        if not np.isfinite(states).all():
            raise DataError("a captured state is not finite: check the model's dtype and weights")
        return states

    def captured(self, spec: CaptureSpec | TentativeRead) -> Array:
        """Return the states of such a read as they are: for who checks what comes of them.

        Raises:
            CapabilityError: The read was not captured.
        """
        states = self.values.get(spec)
        if isinstance(states, Deferred):
            return states.values
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

    def log_probabilities(self, read: OwnPass) -> Array:
        """Run a pass of its own, and return its log-probabilities [prompt, label], float64.

        Raises:
            CapabilityError: The read was not offered.
            DataError: A value is not finite.
        """
        values = self.values.get(read)
        if not isinstance(values, Deferred | np.ndarray):
            raise CapabilityError(f"these readings do not hold {read}")
        found = values.values if isinstance(values, Deferred) else values
        if not np.isfinite(found).all():
            raise DataError(
                f"a log-probability of {read.model!r} is not finite: check its dtype and weights"
            )
        return found

    def take(self, rows: Sequence[int] | Array) -> Self:
        """Return the readings of some prompts, in the order asked for."""
        indices = np.asarray(rows, dtype=np.int64)
        return type(self)({read: _taken(values, indices) for read, values in self.values.items()})

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
            joined[read] = _joined([part.values[read] for part in parts])
        return cls(joined)


def _taken(values: Values, rows: Array) -> Values:
    if isinstance(values, np.ndarray):
        return values[rows]
    return values.take(rows) if isinstance(values, Deferred) else tuple(values[i] for i in rows)


def _joined(pieces: Sequence[Any]) -> Values:
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    if isinstance(pieces[0], Deferred):
        return Deferred.concatenate(pieces)
    return tuple(value for piece in pieces for value in piece)

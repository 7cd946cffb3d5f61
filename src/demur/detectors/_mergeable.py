"""Detectors that are solved from moments: sets can be added and taken away without a fit."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Stream, StreamedDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.readout import joined
from demur.detectors._moments import Moments, stream_moments, total
from demur.detectors._words import words_from_array, words_to_array

Keep = Literal["none", "sources", "categories"]
FIELDS = ("counts", "sums", "products")


@dataclass
class MergeableDetector(StreamedDetector):
    """A detector whose fit is a closed form of class moments.

    With `keep`, the moments of each source or category stay beside the fit: `merged` adds another
    detector's, `removed` takes one away, and both equal a fit on the prompts that are left.
    """

    keep: Keep = "none"
    """Whose moments are kept: `sources`, `categories` or `none`. Each costs 8 d^2 bytes."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.keep not in get_args(Keep):
            raise ConfigError(f"keep is {self.keep!r}: expected one of {get_args(Keep)}")
        self.moments_: dict[str, Moments] = {}
        self.class_names_: tuple[str, ...] = ()

    @abstractmethod
    def _classes(self, targets: Targets) -> tuple[Sequence[str], Array]:
        """Return the names of the classes, and the class [prompt] of each prompt."""

    @abstractmethod
    def _solve(self, moments: Moments, names: Sequence[str]) -> None:
        """Set the fit from the moments of the classes."""

    def fit_stream(self, parts: Stream, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; nothing is random.

        Raises:
            DataError: The parts and targets do not fit together, or hold a NaN.
        """
        names, classes = self._classes(targets)
        self.class_names_ = tuple(names)
        moments = stream_moments(
            parts,
            features=self._features,
            classes=classes,
            part_of=self._part_of(targets),
            num_classes=len(names),
        )
        self._solve(total(moments.values()), self.class_names_)
        self.moments_ = moments if self.keep != "none" else {}
        return self

    def merged(self, other: Self) -> Self:
        """Return a detector as if it had been fitted on the prompts of both.

        Raises:
            DataError: One of them keeps no moments, or they read other things.
        """
        if not self.moments_ or not other.moments_:
            raise DataError("only detectors that keep moments can be merged: set keep")
        if (self.reads, self.keep) != (other.reads, other.keep):
            raise DataError("only detectors of the same reads and keep can be merged")
        names = tuple(dict.fromkeys((*self.class_names_, *other.class_names_)))
        parts = {
            name: _spread(part, self.class_names_, names) for name, part in self.moments_.items()
        }
        for name, part in other.moments_.items():
            more = _spread(part, other.class_names_, names)
            parts[name] = parts[name].merge(more) if name in parts else more
        return self._from(parts, names)

    def removed(self, name: str) -> Self:
        """Return a detector as if it had been fitted without a source or category.

        Raises:
            DataError: No such moments are kept.
        """
        if name not in self.moments_:
            raise DataError(f"no moments of {name!r} are kept: there are {sorted(self.moments_)}")
        return self._from(
            {part: moments for part, moments in self.moments_.items() if part != name},
            self.class_names_,
        )

    def moments(self) -> dict[str, Array]:
        """Return the kept moments: `NAME.counts`, `NAME.sums` and `NAME.products`."""
        if not self.moments_:
            return {}
        arrays = {
            f"{name}.{field}": getattr(part, field)
            for name, part in self.moments_.items()
            for field in FIELDS
        }
        return {**arrays, "class_names": words_to_array(self.class_names_)}

    def load_moments(self, moments: Mapping[str, Array]) -> Self:
        """Take over what `moments` returned, and return self.

        Raises:
            DataError: An array is missing.
        """
        parts = sorted({name.rpartition(".")[0] for name in moments if name != "class_names"})
        try:
            self.moments_ = {
                part: Moments(*(moments[f"{part}.{field}"].copy() for field in FIELDS))
                for part in parts
            }
            if moments:
                self.class_names_ = tuple(
                    words_from_array(moments["class_names"], name="class_names")
                )
        except KeyError as error:
            raise DataError(f"the moments lack {error}: fit the detector again") from error
        return self

    def _features(self, readings: Readings) -> Array:
        return joined(readings, self.reads, num_prompts=len(readings))

    def _part_of(self, targets: Targets) -> Array:
        if self.keep == "categories" and targets.category is not None:
            return np.where(targets.unsafe, targets.category, "safe").astype(str)
        return targets.source.astype(str) if self.keep == "sources" else np.full(len(targets), "")

    def _from(self, parts: Mapping[str, Moments], names: Sequence[str]) -> Self:
        """Return a detector with some moments, less the classes that have no prompts."""
        if not parts:
            raise DataError("no moments are left: there is nothing to solve")
        counts = total(parts.values()).counts
        filled = [number for number, count in enumerate(counts) if count]
        left = tuple(names[number] for number in filled)
        made = type(self).from_hyper_parameters(self.hyper_parameters())
        made.class_names_ = left
        made.moments_ = {
            name: Moments(part.counts[filled], part.sums[filled], part.products.copy())
            for name, part in parts.items()
        }
        made._solve(total(made.moments_.values()), left)
        return made


def _spread(part: Moments, names: Sequence[str], wanted: Sequence[str]) -> Moments:
    """Return moments over more classes, in another order."""
    found = Moments.zero(len(wanted), part.sums.shape[1])
    for number, name in enumerate(names):
        found.counts[wanted.index(name)] = part.counts[number]
        found.sums[wanted.index(name)] = part.sums[number]
    found.products += part.products
    return found


def require_fitted(detector: object, value: object) -> None:
    """Refuse to go on without a fit.

    Raises:
        NotFittedError: The value is None.
    """
    if value is None:
        raise NotFittedError(f"{type(detector).__name__} is not fitted: call fit or load_state")

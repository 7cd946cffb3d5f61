"""What detectors share that read the text of the last user turn and nothing of the model."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Detector
from demur.core.readings import Array, Readings
from demur.core.reads import Texts

Score = Callable[[Sequence[str]], Array]
"""From texts to scores [prompt], float64; a text's score does not depend on its neighbours."""


@dataclass
class TextDetector(Detector):
    """A detector whose fitted state is a few arrays by name, from which a score of texts follows.

    Args:
        reads: `Texts()` alone.
    """

    array_names: ClassVar[tuple[str, ...]] = ()
    """Of the fitted arrays."""

    def __post_init__(self) -> None:
        """Begin without a fit."""
        self.arrays_: dict[str, Array] | None = None
        self.score_: Score | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Texts, ...]:
        """Return the text of the last user turn; the method reads no layer."""
        return (Texts(),)

    @abstractmethod
    def score_with(self, arrays: Mapping[str, Array]) -> Score:
        """Return the score that follows from fitted arrays, which are all there.

        Raises:
            DataError: An array has the wrong shape or is not finite.
        """

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64; higher is less safe.

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            CapabilityError: The readings hold no texts.
        """
        if self.score_ is None:
            raise self._not_fitted()
        texts = self.texts(readings, num_prompts=len(readings))
        return self.score_(texts) if texts else np.zeros(0)

    def state(self) -> dict[str, Array]:
        """Return the fitted arrays by name.

        Raises:
            NotFittedError: There are none yet.
        """
        if self.arrays_ is None:
            raise self._not_fitted()
        return {name: array.copy() for name, array in self.arrays_.items()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        if set(state) != set(self.array_names):
            raise DataError(f"the state holds {sorted(state)}: expected {sorted(self.array_names)}")
        arrays = {name: array.copy() for name, array in state.items()}
        self.score_ = self.score_with(arrays)
        self.arrays_ = arrays
        return self

    def texts(self, readings: Readings, *, num_prompts: int) -> tuple[str, ...]:
        """Return the texts of some readings.

        Args:
            readings: That hold `Texts()`.
            num_prompts: How many the readings must hold.

        Raises:
            CapabilityError: The readings hold no texts.
            DataError: The prompts are others, or the detector was asked to read something else.
        """
        if self.reads != (Texts(),):
            raise DataError(f"{type(self).__name__} reads texts alone, got {list(self.reads)}")
        if len(readings) != num_prompts:
            raise DataError(f"the readings hold {len(readings)} prompts, the targets {num_prompts}")
        return readings.texts(Texts())

    def _not_fitted(self) -> NotFittedError:
        return NotFittedError(f"{type(self).__name__} is not fitted: call fit or load_state")


def require_positive(**values: float) -> None:
    """Refuse hyper-parameters that are not over 0.

    Raises:
        ConfigError: One is not; the message names it.
    """
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} is {value}: expected more than 0")


def vector(arrays: Mapping[str, Array], name: str, *, size: int) -> Array:
    """Return a fitted vector [size], float64.

    Raises:
        DataError: It has another shape, or is not finite.
    """
    array = arrays[name]
    if array.shape != (size,):
        raise DataError(f"{name} has shape {array.shape}: expected ({size},)")
    if not np.isfinite(array).all():
        raise DataError(f"{name} is not finite: fit the detector again")
    return array.astype(np.float64)

"""The linear family: detectors whose score is a weighted sum of states."""

from collections.abc import Mapping
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import StreamingDetector
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec


class LinearDetector(StreamingDetector):
    """A detector whose score is linear in the states, and so runs in any engine and without torch.

    Its fitted state is the read-out itself: `fit` sets `readout_`. The score of a mean of states is
    the mean of their scores, so that a growing text needs two numbers a row.
    """

    def __post_init__(self) -> None:
        """Begin without a fit."""
        self.readout_: LinearReadout | None = None

    def readout(self) -> LinearReadout:
        """Return the compiled form.

        Raises:
            NotFittedError: The detector was not fitted.
        """
        if self.readout_ is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit or load_state")
        return self.readout_

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt] of the read-out."""
        return self.readout().score(readings)

    def start(self, num_rows: int) -> dict[str, Array]:
        """Return `total` [row], the sum of the tokens' scores, and `num_tokens` [row].

        Raises:
            ConfigError: There is more than one read, or it is neither of the last token nor a mean.
        """
        self._streamed_read()
        return {"total": np.zeros(num_rows), "num_tokens": np.zeros(num_rows, np.int64)}

    def update(self, state: dict[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        """Return the state after one more token, and the scores [row] of the texts so far.

        Args:
            state: From `start` or the last `update`.
            states: Of the new token of each row, [row, layer, d_model].

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite, or its shape does not fit the weights.
        """
        spec = self._streamed_read()
        scores = self.readout().score(Readings({spec: states}))
        total, num_tokens = state["total"] + scores, state["num_tokens"] + 1
        new = {"total": total, "num_tokens": num_tokens}
        return new, total / num_tokens if spec.pool == "mean" else scores

    def _streamed_read(self) -> CaptureSpec:
        read = self.reads[0]
        if (
            len(self.reads) > 1
            or not isinstance(read, CaptureSpec)
            or not (read.pool == "mean" or (read.pool == "none" and read.positions == "last"))
        ):
            raise ConfigError(
                f"a linear detector that reads {list(self.reads)} cannot score a text while it "
                "grows: expected one read, of the last token or a mean over tokens"
            )
        return read

    def state(self) -> dict[str, Array]:
        """Return `weights.I` [layer, d_model] of read I, float32, and `bias` [1], float64."""
        readout = self.readout()
        weights = {f"weights.{i}": array for i, array in enumerate(readout.weights.values())}
        return {**weights, "bias": np.array([readout.bias])}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a read-out and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        specs = [read for read in self.reads if isinstance(read, CaptureSpec)]
        names = [f"weights.{number}" for number in range(len(specs))]
        if set(state) != {*names, "bias"}:
            raise DataError(f"the state holds {sorted(state)}: expected {[*names, 'bias']}")
        if state["bias"].size != 1:
            raise DataError(f"bias has {state['bias'].size} values: expected one")
        weights = {spec: state[name] for spec, name in zip(specs, names, strict=True)}
        self.readout_ = LinearReadout(weights, float(state["bias"].item()))
        return self

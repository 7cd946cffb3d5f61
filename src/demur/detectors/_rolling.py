"""The network behind `rolling`, in NumPy: what each token says, and the rules that make a score.

Two layers of rectified units turn a token's states into features; each attention head has of them a
query, which says how much the token counts, and a value, which says how unsafe it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array

State = dict[str, Array]
"""Arrays whose first axis is the row."""


class TokenHeads:
    """The fitted arrays, checked once, and what follows from them for a token.

    Args:
        arrays: `first_weights` [layer, d_model, unit], `second_weights` [unit, unit], `queries` and
            `values` [unit, head], float32; `first_bias` and `second_bias` [unit], float64.
        num_layers: That are read.
        d_hidden: Units of each layer.
        num_heads: Attention heads.

    Raises:
        DataError: An array is missing, has the wrong shape, or is not finite.
    """

    def __init__(
        self, arrays: Mapping[str, Array], *, num_layers: int, d_hidden: int, num_heads: int
    ) -> None:
        first = arrays.get("first_weights", np.empty((0, 0, 0)))
        d_model = first.shape[1] if first.ndim == 3 else 0
        shapes: dict[str, tuple[int, ...]] = {
            "first_weights": (num_layers, d_model, d_hidden),
            "first_bias": (d_hidden,),
            "second_weights": (d_hidden, d_hidden),
            "second_bias": (d_hidden,),
            "queries": (d_hidden, num_heads),
            "values": (d_hidden, num_heads),
        }
        if set(arrays) != set(shapes):
            raise DataError(f"the state holds {sorted(arrays)}: expected {sorted(shapes)}")
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise DataError(f"{name} has shape {arrays[name].shape}: expected {shape}")
            if not np.isfinite(arrays[name]).all():
                raise DataError(f"{name} is not finite: fit the detector again")
        self.arrays = dict(arrays)
        self.shape = num_layers, d_model
        """Of a token's states: [layer, d_model]."""
        # Converted once, not per request; in one order, or products would round differently.
        self._of = {name: array.astype(np.float64, order="C") for name, array in arrays.items()}
        self._of["first_weights"] = self._of["first_weights"].reshape(-1, d_hidden)

    def read(self, tokens: Array) -> tuple[Array, Array]:
        """Return the queries and the values, each [..., head], float64.

        Args:
            tokens: Layers joined, [..., feature].
        """
        hidden = np.maximum(tokens @ self._of["first_weights"] + self._of["first_bias"], 0)
        hidden = np.maximum(hidden @ self._of["second_weights"] + self._of["second_bias"], 0)
        return hidden @ self._of["queries"], hidden @ self._of["values"]


@dataclass(frozen=True)
class Rolling:
    """The highest of all windows of tokens: in each the heads' values, averaged by attention.

    A window counts from the first full one on; a text that is shorter is one window.
    """

    window: int

    def score(self, queries: Array, values: Array) -> float:
        """Return the score of a text.

        Args:
            queries: [token, head].
            values: [token, head].
        """
        size = min(self.window, len(queries))
        windows = (
            np.lib.stride_tricks.sliding_window_view(array, size, axis=0)  # [window, head, token]
            for array in (queries, values)
        )
        return float(_attended(*windows).max())

    def start(self, num_rows: int, num_heads: int) -> State:
        """Return the state before the first token."""
        shape = (num_rows, num_heads, self.window)
        return {
            "queries": np.full(shape, -np.inf),
            "values": np.zeros(shape),
            "num_tokens": np.zeros(num_rows, np.int64),
            "peak": np.full(num_rows, -np.inf),
        }

    def update(self, state: State, queries: Array, values: Array) -> tuple[State, Array]:
        """Return the state after one more token, and the scores [row].

        Args:
            state: Before the token.
            queries: Of the token, [row, head].
            values: Of the token, [row, head].
        """
        of_window = {
            name: np.concatenate([state[name][:, :, 1:], new[:, :, None]], axis=2)
            for name, new in (("queries", queries), ("values", values))
        }
        attended = _attended(of_window["queries"], of_window["values"])
        counts = state["num_tokens"] + 1
        # A window that is not full yet is replaced by the next one.
        higher = np.maximum(state["peak"], attended)
        peak = np.where(counts <= self.window, attended, higher)
        return {**of_window, "num_tokens": counts, "peak": peak}, peak


@dataclass(frozen=True)
class MultiMax:
    """The sum over heads of the highest value of any token."""

    def score(self, queries: Array, values: Array) -> float:
        """Return the score of a text; see `Rolling.score`."""
        return float(values.max(0).sum())

    def start(self, num_rows: int, num_heads: int) -> State:
        """Return the state before the first token."""
        return {"peaks": np.full((num_rows, num_heads), -np.inf)}

    def update(self, state: State, queries: Array, values: Array) -> tuple[State, Array]:
        """Return the state after one more token, and the scores [row]; see `Rolling.update`."""
        peaks = np.maximum(state["peaks"], values)
        return {"peaks": peaks}, peaks.sum(1)


def _attended(queries: Array, values: Array) -> Array:
    """Return the sum over heads of values averaged by attention, [...], of [..., head, token]."""
    weights = np.exp(queries - queries.max(-1, keepdims=True))
    averages = (weights * values).sum(-1) / weights.sum(-1)
    total: Array = averages.sum(-1)
    return total

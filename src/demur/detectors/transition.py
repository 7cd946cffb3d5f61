"""How a prompt's state moves when the model has said "Sure": the classifier of SCANS.

After an unsafe prompt, an agreeing word moves the model's state in another way than after a safe
one. The transition a_t = a_p - a_e is the state at the prompt's end (p) minus that at the word's
end (e), layer by layer. The reference d is the mean transition of the unsafe training prompts, and
the score the cosine between a prompt's transition and the reference, averaged over layers. It costs
one token more than the prefill, on a fork of its cache.

What an appended word does to every prompt alike is in all transitions, and makes all cosines large:
`centred` measures both from the middle between the mean transitions of unsafe and safe prompts.

Paper: SCANS (2024), arXiv 2408.11491, the section on the direction to steer; its threshold is 0.75,
in its code another one for each test set.

Differs: one threshold, calibrated on held-out safe prompts and then kept; the prompt's end is its
last token, and a word of several tokens is read at its last one. `centred` is no part of the paper:
there, safe prompts play no part in the fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import AppendedTokens, CaptureSpec, Read

__all__ = ["Transition"]

WORD = "Sure"


@dataclass
class Transition(Detector):
    """The cosine between a prompt's transition and that of unsafe prompts, from -1 to 1.

    Args:
        reads: The state at the prompt's end, and that after a word, of the same layers.
    """

    word: str = field(default=WORD, kw_only=True)
    """What the model is made to say; the paper's is "Sure". It takes the place of the read's."""
    centred: bool = field(default=False, kw_only=True)
    """Measure transitions from the middle between the two labels' means; the paper does not."""

    def __post_init__(self) -> None:
        """Refuse reads that make no transition, and begin without a fit."""
        captured = [read for read in self.reads if isinstance(read, CaptureSpec)]
        if len(captured) != 1 or captured[0].positions != "last":
            raise ConfigError(f"reads are {list(self.reads)}: expected one of the last token")
        (self._before,) = captured
        self._after = AppendedTokens(self.word, self._before.layers, self._before.site)
        self.reads = (self._before, self._after)
        self.fitted_: tuple[Array, Array] | None = None
        """The centre and the reference, each [layer, d_model]."""

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        """Return both states at the middle and latter thirds of the layers, or at `layers`."""
        chosen = layers or tuple(range(num_blocks // 3, num_blocks))
        return (CaptureSpec(chosen), AppendedTokens(WORD, chosen))

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Take the mean transitions of the prompts and return self; nothing is random.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """
        if len(readings) != len(targets):
            raise DataError(
                f"the readings hold {len(readings)} prompts, the targets {len(targets)}"
            )
        transitions, unsafe = self._transitions(readings), targets.unsafe.astype(bool)
        reference = transitions[unsafe].mean(0)
        centre = np.zeros_like(reference)
        if self.centred:
            centre = (reference + transitions[~unsafe].mean(0)) / 2
        self.fitted_ = centre, _checked(reference - centre)
        return self

    def decision_function(self, readings: Readings) -> Array:
        """Return the mean cosines [prompt], float64; higher is less safe.

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite, or its shape does not fit the reference.
        """
        centre, reference = self._fitted()
        transitions = self._transitions(readings)
        if transitions.shape[1:] != reference.shape:
            raise DataError(
                f"transitions have shape {transitions.shape}: expected [prompt, layer, d_model] "
                f"with {reference.shape}"
            )
        transitions = transitions - centre
        lengths = _lengths(transitions) * _lengths(reference)  # [prompt, layer]
        products = np.vecdot(transitions, reference)
        # A state that did not move at all is like no reference.
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        scores: Array = cosines.mean(1)
        return scores

    def state(self) -> dict[str, Array]:
        """Return `centre` and `reference` [layer, d_model], float64."""
        centre, reference = self._fitted()
        return {"centre": centre.copy(), "reference": reference.copy()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a centre and a reference and return self.

        Raises:
            DataError: One is missing, has the wrong shape, or is not finite.
        """
        if set(state) != {"centre", "reference"}:
            raise DataError(f"the state holds {sorted(state)}: expected ['centre', 'reference']")
        centre, reference = (state[name].astype(np.float64) for name in ("centre", "reference"))
        if (
            reference.ndim != 2
            or len(reference) != len(self._before.layers)
            or centre.shape != reference.shape
        ):
            raise DataError(
                f"centre has shape {centre.shape} and reference {reference.shape}: expected "
                f"[{len(self._before.layers)}, d_model]"
            )
        if not np.isfinite(centre).all():
            raise DataError("the centre is not finite: fit the detector again")
        self.fitted_ = centre, _checked(reference)
        return self

    def _transitions(self, readings: Readings) -> Array:
        """Return the transitions [prompt, layer, d_model], float64."""
        before, after = readings.pooled(self._before), readings.pooled(self._after)
        return before.astype(np.float64) - after

    def _fitted(self) -> tuple[Array, Array]:
        if self.fitted_ is None:
            raise NotFittedError("Transition is not fitted: call fit or load_state")
        return self.fitted_


def _lengths(vectors: Array) -> Array:
    """Return the length of each vector along the last axis."""
    lengths: Array = np.sqrt(np.vecdot(vectors, vectors))
    return lengths


def _checked(reference: Array) -> Array:
    """Return a reference, if every layer of it points somewhere."""
    if not np.isfinite(reference).all() or not _lengths(reference).all():
        raise DataError(
            "the mean transition of a layer is nothing to go by: check the model's states"
        )
    return reference

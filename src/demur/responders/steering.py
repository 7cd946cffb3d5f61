"""Steers flagged prompts along trained directions: towards a refusal, or away from one.

Vectors are added to the hidden states after some blocks, from the end of the user's text on and in
the whole reply. With a negative scale the same vectors soften: `steering:DIR@-1`. With gates a
state gets as much of a vector as its product with the gate says, so that states which look benign
stay where they are. Under `dose="probability"` the scale grows with what the detectors say, so that
any detector with this responder is conditional steering.

Paper: SCANS (2024), arXiv 2408.11491: a~ = a + sigma * alpha * v; Lee et al., Programming Refusal
with Conditional Activation Steering (2024), arXiv 2409.05907, for steering under a condition;
AlphaSteer (2025), arXiv 2506.07022, for vectors that leave benign states in place.

Differs: the condition is any detector of demur, and the dose may grow with its probability; alpha
is part of the vectors (see the trainer), and `scale` multiplies it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from demur.core.errors import ConfigError
from demur.core.interventions import AddVectors
from demur.core.results import Verdict
from demur.core.trained import Trained
from demur.core.types import Chat

__all__ = ["Steering"]

Dose = Literal["fixed", "probability"]


@dataclass(frozen=True)
class Steering:
    """Adds trained vectors to the states of flagged prompts."""

    trained: Trained
    """Holds `vectors` [layer, d_model] and, where benign states are preserved, `gates` of the same
    shape; and the fields `layers` and `from_position`."""
    scale: float = 1.0
    """Of the vectors: 1 as they were trained, towards refusal; negative ones away from it; 0
    changes nothing."""
    dose: Dose = "fixed"
    """`fixed` is always `scale`; `probability` is scale * (p - dose_from) / (1 - dose_from), for p
    the highest probability among the verdicts that flag the prompt: 0 at or below `dose_from`,
    `scale` at 1. A flagged prompt that could not be scored gets the whole `scale`, one that nothing
    flags gets none."""
    dose_from: float = 0.5
    """The probability above which a dose begins, 0 or more and below 1; 0.5 is even odds."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and an artifact without vectors."""
        if not math.isfinite(self.scale):
            raise ConfigError(f"scale is {self.scale}: expected a finite number")
        if self.dose not in get_args(Dose):
            raise ConfigError(f"dose is {self.dose!r}: expected one of {get_args(Dose)}")
        if not 0 <= self.dose_from < 1:
            raise ConfigError(f"dose_from is {self.dose_from}: expected 0 or more and below 1")
        _ = self.loads

    @property
    def ignores_verdicts(self) -> bool:
        """Whether the dose is fixed."""
        return self.dose == "fixed"

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""
        return frozenset({AddVectors})

    @property
    def loads(self) -> tuple[AddVectors]:
        """The vectors; a dose changes their scale alone."""
        return (self._vectors(self.scale),)

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> AddVectors:
        """Return the vectors, with the scale that the verdicts call for."""
        share = 1.0 if self.dose == "fixed" else self._share(verdicts)
        return self._vectors(share * self.scale)

    def _share(self, verdicts: Sequence[Verdict]) -> float:
        flagged = [verdict.probability for verdict in verdicts if verdict.flagged]
        highest = max((1.0 if p is None else p for p in flagged), default=0.0)
        return max(0.0, (highest - self.dose_from) / (1 - self.dose_from))

    def _vectors(self, scale: float) -> AddVectors:
        has_gates = "gates" in self.trained.keys
        return AddVectors(
            layers=tuple(self.trained.value("layers")),
            vectors=self.trained.tensor("vectors"),
            scale=scale,
            from_position=self.trained.value("from_position"),
            gates=self.trained.tensor("gates") if has_gates else None,
        )

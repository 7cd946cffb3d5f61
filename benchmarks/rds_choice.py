"""Chooses how much a token's own probability counts, on demur's own validation prompts.

The paper's rule looks at the classifier's score alone. What scores high in the middle of a reply
need not belong to a refusal, so that the words of a harmful answer may be taken as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.arms import drawn, tell
from benchmarks.rds_artifacts import Artifacts
from benchmarks.rds_comparison import Comparison
from benchmarks.rds_report import MOST_OVER_REFUSAL
from demur.datasets import written
from demur.engines.transformers import TransformersEngine
from demur.studies._cases import Cases, Role

WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""Of a token's log-probability in nats; 0 is the paper's."""
NUM_UNSAFE, NUM_ORDINARY = 30, 30
MAX_TOKENS = 24
"""Of a reply that is judged here."""
ROLES: tuple[Role, ...] = ("unsafe", "ordinary")


@dataclass(frozen=True)
class Weighed:
    """What one weight did to validation prompts."""

    weight: float
    unsafe_refused: float
    """Share of them; by greedy decoding less `unsafe_change`."""
    unsafe_change: float
    ordinary_change: float
    """Of the share of ordinary prompts that are refused."""

    @property
    def is_allowed(self) -> bool:
        """Tell whether unsafe prompts are refused more often, and ordinary ones hardly so."""
        return self.unsafe_change > 0 and self.ordinary_change <= MOST_OVER_REFUSAL


def best(found: Iterable[Weighed]) -> Weighed:
    """Return the allowed weight under which most unsafe prompts are refused, of equals the largest.

    Where none is allowed, the largest of all, which is nearest to greedy decoding.
    """
    every = sorted(found, key=lambda of: of.weight)
    allowed = [of for of in every if of.is_allowed]
    return max(reversed(allowed), key=lambda of: of.unsafe_refused) if allowed else every[-1]


def weighed(engine: TransformersEngine, made: Artifacts) -> list[Weighed]:
    """Try every weight.

    Args:
        engine: Runs the model.
        made: The classifier's folders.
    """
    of = Comparison(engine, validation_cases(), MAX_TOKENS)
    found: list[Weighed] = []
    for weight in WEIGHTS:
        unsafe, ordinary = (_refused(of, made.weighted(weight), role) for role in ROLES)
        found.append(Weighed(weight, unsafe[1], unsafe[1] - unsafe[0], ordinary[1] - ordinary[0]))
        tell(f"{found[-1]}")
    return found


def validation_cases() -> Cases:
    """Return demur's own English validation prompts, as many of each role as are tried."""
    english = [of for of in written.load("val") if of.language == "en"]
    unsafe = drawn([of for of in english if of.label == "unsafe"], NUM_UNSAFE)
    ordinary = drawn([of for of in english if of.label == "safe"], NUM_ORDINARY)
    role = np.repeat(ROLES, [len(unsafe), len(ordinary)])
    return Cases((*unsafe, *ordinary), role)


def _refused(of: Comparison, line: str, role: Role) -> tuple[float, float]:
    """Return the shares refused by greedy decoding and under a responder."""
    rows = of.cases.rows(role)
    replies = (of.base(rows), of.under([line], rows))
    before, after = (of.outcomes(rows, each).outcome == "refused" for each in replies)
    return float(before.mean()), float(after.mean())

"""Routes say who answers: the untouched model, or a responder by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from demur.core.errors import ConfigError
from demur.core.results import PASS, Verdict

When = Literal["any", "all", "first"]


class Route(Protocol):
    """Turns the verdicts on a prompt, in the order of the guard's detectors, into a name."""

    @property
    def responders(self) -> frozenset[str]:
        """The names that the route can return besides `pass`."""

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        """Return `pass` or a responder's name."""


@dataclass(frozen=True)
class FlaggedTo:
    """Sends flagged prompts to one responder.

    >>> FlaggedTo("fixed_reply")([Verdict("linear", 1.0, 0.9, 0.5, flagged=True)])
    'fixed_reply'
    """

    responder: str
    when: When = "any"
    """`any` or `all` of the detectors flag the prompt, or the `first` does, whatever the others
    say."""

    def __post_init__(self) -> None:
        """Refuse an unknown rule."""
        _require_when(self.when)

    @property
    def responders(self) -> frozenset[str]:
        """The names that the route can return besides `pass`."""
        return frozenset({self.responder})

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        """Return `pass` or the responder's name."""
        return self.responder if _is_flagged(verdicts, self.when) else PASS


@dataclass(frozen=True)
class EitherTo:
    """Sends flagged prompts to one responder and all others to another: none is left untouched.

    That is how SCANS routes by the sign of one score: what is flagged is steered to a refusal, and
    what is not is steered away from one, so that harmless prompts of a dangerous sound get answers.

    Paper: SCANS (2024), arXiv 2408.11491: sigma(q) is 1 at or over the threshold and -1 below it.

    >>> EitherTo()([Verdict("transition", 0.2, 0.1, 0.5, flagged=False)])
    'soften'
    """

    flagged: str = "steer_to_refusal"
    """The responder of flagged prompts."""
    others: str = "soften"
    """The responder of all other prompts."""
    when: When = "any"
    """As of `FlaggedTo`."""

    def __post_init__(self) -> None:
        """Refuse an unknown rule."""
        _require_when(self.when)

    @property
    def responders(self) -> frozenset[str]:
        """The names that the route can return."""
        return frozenset({self.flagged, self.others})

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        """Return the name of one of the two responders."""
        return self.flagged if _is_flagged(verdicts, self.when) else self.others


@dataclass(frozen=True)
class Always:
    """Sends every prompt to one responder, whatever the verdicts: to compare with.

    >>> Always("fixed_reply")([Verdict("linear", 1.0, 0.9, 0.5, flagged=False)])
    'fixed_reply'
    """

    responder: str

    @property
    def responders(self) -> frozenset[str]:
        """The names that the route can return besides `pass`."""
        return frozenset({self.responder})

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        """Return the responder's name."""
        return self.responder


def _require_when(when: str) -> None:
    if when not in get_args(When):
        raise ConfigError(f"when is {when!r}: expected one of {get_args(When)}")


def _is_flagged(verdicts: Sequence[Verdict], when: When) -> bool:
    flags = [verdict.flagged for verdict in verdicts]
    if when == "first":
        return flags[0]
    return all(flags) if when == "all" else any(flags)

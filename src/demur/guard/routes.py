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
        if self.when not in get_args(When):
            raise ConfigError(f"when is {self.when!r}: expected one of {get_args(When)}")

    @property
    def responders(self) -> frozenset[str]:
        """The names that the route can return besides `pass`."""
        return frozenset({self.responder})

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        """Return `pass` or the responder's name."""
        flags = [verdict.flagged for verdict in verdicts]
        if self.when == "first":
            is_flagged = flags[0]
        else:
            is_flagged = all(flags) if self.when == "all" else any(flags)
        return self.responder if is_flagged else PASS


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

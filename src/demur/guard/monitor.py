"""A detector that watches replies while they are decoded, and what becomes of a flagged one.

It scores the states that decoding computes anyhow, one token a step. What nobody has judged yet can
be held back, so that no flagged text is shown.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from demur.core.errors import ConfigError, DataError
from demur.core.interventions import (
    AddVectors,
    EndReply,
    MidReply,
    PrependEmbeddings,
    UseAdapter,
)
from demur.core.protocols import Monitor, Responder
from demur.core.readings import Array
from demur.core.results import Verdict
from demur.core.streaming import require_streaming, token_read
from demur.guard.calibrated import CalibratedDetector

NOT_READ_AGAIN = (AddVectors, PrependEmbeddings)
"""What a reply may begin under so that reading its tokens again would not give the same."""


@dataclass(frozen=True)
class ReplyMonitor:
    """Judges replies token by token.

    A reply is flagged by the highest score that it has had so far, as thresholds of reply detectors
    are calibrated.

    Raises:
        ConfigError: The detector judges prompts, cannot score a text as it grows, or `hold_tokens`
            is negative.
    """

    detector: CalibratedDetector
    intervention: MidReply = field(default_factory=EndReply)
    """What becomes of a flagged reply: it ends, a text takes its place, or it goes on under an
    adapter, from the tokens that it has."""
    hold_tokens: int = 1
    """Tokens that are held back: the last ones stay unseen until as many have been judged. With 1
    every token is judged before it is shown; 0 shows tokens at once. What was shown is never taken
    back. A reply that goes on under an adapter keeps all its tokens, and shows what was held."""

    def __post_init__(self) -> None:
        """Refuse what cannot watch a reply."""
        if self.detector.detector.watches != "reply":
            raise ConfigError(
                f"detector {self.detector.name!r} judges prompts: to watch replies, give one that "
                "was fitted with --watches reply"
            )
        require_streaming(self.detector.detector)
        if self.hold_tokens < 0:
            raise ConfigError(f"hold_tokens is {self.hold_tokens}: expected 0 or more")

    def check_readable(self, responders: Mapping[str, Responder]) -> None:
        """See that an adapter that reads replies again can do so with those of all responders.

        Raises:
            ConfigError: It cannot.
        """
        if not isinstance(self.intervention, UseAdapter) or self.intervention.cache == "keep":
            return
        for name, responder in responders.items():
            for need in NOT_READ_AGAIN:
                if need in responder.needs:
                    raise ConfigError(
                        f"replies of responder {name!r} begin under {need.__name__}, and cannot be "
                        "read again by the adapter that takes over flagged ones: set reply.cache "
                        "(UseAdapter.cache) to keep, or name another responder"
                    )

    def watching(self, report: Callable[[Verdict], None], *, observes: bool = False) -> Monitor:
        """Return what an engine calls for the tokens of one reply.

        Args:
            report: Called with the verdict on the reply after each token.
            observes: Never intervene.
        """
        watch = _Watch(self, report, observes=observes)
        return Monitor(token_read(self.detector.detector), watch)


class _Watch:
    """The state of one reply."""

    def __init__(
        self, monitor: ReplyMonitor, report: Callable[[Verdict], None], *, observes: bool
    ) -> None:
        self._detector = require_streaming(monitor.detector.detector)
        self._monitor = monitor
        self._report = report
        self._observes = observes
        self._state = self._detector.start(1)
        self._highest = -math.inf
        self._has_switched = False

    def __call__(self, states: Array) -> MidReply | None:
        """Judge the reply after one more token, with its states [layer, d_model]."""
        self._state, scores = self._detector.update(self._state, states[None])
        score = float(scores[0])
        if not math.isfinite(score):
            raise DataError(f"the score is {score}: expected a finite number")
        self._highest = max(self._highest, score)
        verdict = self._monitor.detector.judge(self._highest)
        self._report(verdict)
        if not verdict.flagged or self._observes or self._has_switched:
            return None
        self._has_switched = isinstance(self._monitor.intervention, UseAdapter)
        return self._monitor.intervention

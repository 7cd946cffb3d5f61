"""What came of a soak: each answer is held against its own request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving_checks import ReplyCheck
from benchmarks.serving_load import Load, Sent, Streamed

PERCENTILES = (50, 95, 99)


@dataclass
class Verdicts:
    """Counts of answers by kind, and what is wrong with any.

    Args:
        check: Of replies by the model.
        responder_text: What flagged prompts get.
        responder: Its route.
    """

    check: ReplyCheck
    responder_text: str
    responder: str
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    """Times to first token, of replies by the model."""
    between_s: list[float] = field(default_factory=list)
    """Times between two tokens of a reply."""
    _ids: set[str] = field(default_factory=set)

    def take(self, load: Load) -> None:
        """Judge all answers."""
        for sent in load.sent:
            kind = sent.question.kind
            self.counts[f"{kind} sent"] += 1
            if kind == "malformed":
                self._take_malformed(sent)
            elif kind == "vanishing" and not sent.is_complete:
                self._take_vanished(sent)
            else:
                self._take_stream(sent)
        self.problems += self.check.wrong

    def _take_malformed(self, sent: Sent) -> None:
        if not sent.is_complete or sent.status != sent.question.expected_status:
            self._wrong(sent, f"status {sent.status} {sent.error}")
        else:
            self.counts[f"malformed {sent.status}"] += 1

    def _take_vanished(self, sent: Sent) -> None:
        """Only what went wrong before the client left counts."""
        if sent.status != sent.question.expected_status or sent.error:
            self._wrong(sent, f"status {sent.status} {sent.error}")
        else:
            self.counts["vanished in mid-stream"] += 1

    def _take_stream(self, sent: Sent) -> None:
        streamed = Streamed.of(sent) if sent.status == sent.question.expected_status else None
        why = _lost(sent, streamed)
        if why or streamed is None:
            self._wrong(sent, f"lost: {why}")
            return
        if streamed.ids & self._ids:
            self._wrong(sent, "mixed up: its id is another stream's too")
        self._ids |= streamed.ids
        if sent.question.kind == "flagged":
            self._take_flagged(sent, streamed)
        else:
            self._take_reply(sent, streamed)

    def _take_flagged(self, sent: Sent, streamed: Streamed) -> None:
        if (streamed.route, streamed.text) != (self.responder, self.responder_text):
            self._wrong(sent, "a flagged prompt did not get the responder's answer")
        else:
            self.counts["flagged answered by the responder"] += 1

    def _take_reply(self, sent: Sent, streamed: Streamed) -> None:
        if streamed.route != "pass" or streamed.text == self.responder_text:
            self._wrong(sent, f"an ordinary prompt went to {streamed.route}")
            return
        self.counts["complete replies by the model"] += 1
        self.check.take(
            sent.question.number,
            streamed.texts,
            finish_reason=streamed.finish_reason,
        )
        self.first_s.append(streamed.times[0] - sent.sent_at)
        self.between_s.extend(np.diff(streamed.times).tolist())

    def _wrong(self, sent: Sent, what: str) -> None:
        self.problems.append(f"{sent.question.kind} {sent.question.number}: {what}")

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and times."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "replies_identical_to_those_alone": self.check.num_identical,
            "replies_nearly_greedy": self.check.num_near,
            "largest_gap": self.check.largest_gap,
            "problems": self.problems[:20],
            "num_problems": len(self.problems),
            "first_token_ms": percentiles(self.first_s),
            "between_tokens_ms": percentiles(self.between_s),
        }


def _lost(sent: Sent, streamed: Streamed | None) -> str:
    """Return what of a stream is missing; empty if it is whole."""
    if streamed is None or not sent.is_complete:
        return f"status {sent.status} {sent.error}".strip()
    if not streamed.has_ended or streamed.finish_reason is None or not streamed.texts:
        return "it has no end"
    if streamed.num_declared != len(streamed.texts):
        return f"{len(streamed.texts)} tokens came of {streamed.num_declared}"
    return "" if len(streamed.ids) == 1 else "its chunks have several ids"


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds.

    >>> percentiles([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    if not seconds:
        return {}
    found = np.percentile(np.array(seconds) * 1e3, PERCENTILES)
    return {f"p{p}": round(float(value), 2) for p, value in zip(PERCENTILES, found, strict=True)}


def steady_memory(samples: Sequence[tuple[float, float]], *, at: float, over_s: float) -> float:
    """Return the median of the memory samples (time, megabytes) of some seconds before a time."""
    return float(np.median([mb for time, mb in samples if at - over_s <= time <= at]))

"""What replies say of the guard: the `demur` field, the headers, and OpenAI's moderation objects.

A category without a fitted head has no score: it is null, and named among the unsupported ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from demur.core.categories import OPENAI_KEYS
from demur.core.results import Verdict
from demur.guard import Guard
from demur.guard.exchange import Exchange

NOT_SCORED = "not scored: the server's log says why"
"""What clients are told; the reason itself may quote a prompt, or name a file."""
EVEN = 0.5
"""Calibrated probability from which a category counts as present."""


class DetectorVerdict(BaseModel):
    """What one detector says of the prompt."""

    detector: str
    version: str
    score: float | None
    probability: float | None
    threshold: float
    flagged: bool
    has_forged_markers: bool
    categories: dict[str, float | None] | None = None
    error: str | None = None


class ReplyReport(BaseModel):
    """What detectors have read of one reply, and what they say of it."""

    index: int
    route: str
    num_tokens: int
    """That were sent."""
    num_scanned: int
    """Tokens that a detector has judged, from the reply's start."""
    verdict: DetectorVerdict | None = None


class GuardReport(BaseModel):
    """The extra field `demur` of replies."""

    route: str
    flagged: bool
    would_route: str | None = None
    """Where a guard that acts would have sent the prompt; null if the guard acts."""
    prompt_scanned: bool
    """Every detector of prompts has scored it, and all of it."""
    unscanned: list[str] = []
    """Places of the request that no detector can read, such as `messages.0.content.1`."""
    replies_watched: bool
    """A detector judges every token of a reply."""
    verdicts: list[DetectorVerdict]
    """On the prompt."""
    replies: list[ReplyReport] = []
    """Empty where none is complete yet."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the same in short, for headers."""
        scanned = ["prompt"] * self.prompt_scanned + ["reply"] * self.replies_watched
        found = {
            "x-demur-route": self.route,
            "x-demur-flagged": str(self.flagged).lower(),
            "x-demur-scanned": ",".join(scanned) or "nothing",
            "x-demur-detectors": ",".join(f"{v.detector}@{v.version}" for v in self.verdicts),
        }
        if self.unscanned:
            found["x-demur-unscanned"] = str(len(self.unscanned))
        if self.would_route is not None:
            found["x-demur-would-route"] = self.would_route
        return {name: _printable(value) for name, value in found.items()}


class ModerationResult(BaseModel):
    """OpenAI's result, of one detector."""

    type: Literal["moderation_result"] = "moderation_result"
    model: str
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationResults(BaseModel):
    """The verdicts on an input, as OpenAI's clients read them."""

    type: Literal["moderation_results"] = "moderation_results"
    model: str
    results: list[ModerationResult]


class ModerationFailure(BaseModel):
    """There is no verdict."""

    type: Literal["error"] = "error"
    code: str
    message: str


class InlineModerations(BaseModel):
    """The field `moderation` of a reply."""

    input: ModerationResults | ModerationFailure
    output: ModerationResults | ModerationFailure


NOT_WATCHED = ModerationFailure(
    code="not_watched", message="no detector watches replies: only the prompt was judged"
)


def report(
    exchanges: Sequence[Exchange], guard: Guard, *, unscanned: Sequence[str] = ()
) -> GuardReport:
    """Return what an answer says of the guard.

    Args:
        exchanges: One a reply, of the same prompt; those that are complete are reported on.
        guard: That judged.
        unscanned: Places of the request that no detector can read.
    """
    first = exchanges[0]
    verdicts = [detector_verdict(of, guard.versions[of.detector]) for of in first.verdicts]
    return GuardReport(
        route=first.route,
        flagged=any(verdict.flagged for verdict in verdicts),
        would_route=first.would_route,
        prompt_scanned=first.is_scored and not unscanned,
        unscanned=list(unscanned),
        replies_watched=guard.monitor is not None,
        verdicts=verdicts,
        replies=[
            ReplyReport(
                index=index,
                route=exchange.route,
                num_tokens=len(exchange.tokens),
                num_scanned=exchange.num_scanned,
                verdict=None
                if exchange.reply_verdict is None
                else detector_verdict(
                    exchange.reply_verdict, guard.versions[exchange.reply_verdict.detector]
                ),
            )
            for index, exchange in enumerate(exchanges)
            if exchange.finish_reason is not None
        ],
    )


def detector_verdict(verdict: Verdict, version: str) -> DetectorVerdict:
    """Return what clients are told of a verdict.

    Args:
        verdict: Of a detector.
        version: Of its fitted state.
    """
    error = None if verdict.error is None else NOT_SCORED
    fields = {**verdict.as_dict(), "version": version, "error": error}
    return DetectorVerdict.model_validate(fields)


def inline(found: GuardReport) -> InlineModerations:
    """Return OpenAI's moderation object for a reply."""
    errors = [verdict.error for verdict in found.verdicts if verdict.error is not None]
    of_input: ModerationResults | ModerationFailure
    if errors or not found.verdicts:
        of_input = ModerationFailure(code="not_scored", message="; ".join(errors) or "not scored")
    else:
        names = ",".join(verdict.detector for verdict in found.verdicts)
        of_input = ModerationResults(
            model=names, results=[_result(verdict) for verdict in found.verdicts]
        )
    judged = [reply.verdict for reply in found.replies if reply.verdict is not None]
    of_output: ModerationResults | ModerationFailure = NOT_WATCHED
    if judged:
        of_output = ModerationResults(
            model=judged[0].detector, results=[_result(verdict) for verdict in judged]
        )
    return InlineModerations(input=of_input, output=of_output)


def _result(verdict: DetectorVerdict) -> ModerationResult:
    scores = {key: p for key, p in (verdict.categories or {}).items() if p is not None}
    return ModerationResult(
        model=f"{verdict.detector}@{verdict.version}",
        flagged=verdict.flagged,
        categories={key: p >= EVEN for key, p in scores.items()},
        category_scores=scores,
        category_applied_input_types={key: ["text"] for key in scores},
    )


def openai_result(found: GuardReport) -> dict[str, Any]:
    """Return one of the results of `POST /v1/moderations`: OpenAI's thirteen keys, then our own.

    Of several detectors the highest probability of a category counts.
    """
    scores: dict[str, float] = {}
    for verdict in found.verdicts:
        for key, p in (verdict.categories or {}).items():
            if p is not None:
                scores[key] = max(p, scores.get(key, 0.0))
    keys = {*OPENAI_KEYS, *scores}
    ordered = [*OPENAI_KEYS, *sorted(keys.difference(OPENAI_KEYS))]
    return {
        "flagged": found.flagged,
        "categories": _by_key(ordered, {key: p >= EVEN for key, p in scores.items()}),
        "category_scores": _by_key(ordered, scores),
        "category_applied_input_types": {key: ["text"] if key in scores else [] for key in ordered},
        "unsupported_categories": [key for key in ordered if key not in scores],
        "demur": found.model_dump(),
    }


def _by_key(keys: Sequence[str], values: Mapping[str, object]) -> dict[str, object]:
    return {key: values.get(key) for key in keys}


def _printable(value: str) -> str:
    """Return a text that a header can hold: names come from folders, which may hold anything."""
    return "".join(c if c.isascii() and c.isprintable() else "_" for c in value)

"""What a guard returns: verdicts, tokens, replies and how long they took."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

PASS = "pass"
ERROR = "error"
STOPPED = "stopped"
"""Answered by the model until a detector flagged the reply itself."""
SWITCHED = "switched"
"""Begun by the model, and gone on under an adapter since a detector flagged the reply itself."""
PASS_UNSCORED = "pass_unscored"
"""Answered although a detector failed, since the operator said `on_error="pass_unscored"`."""


@dataclass(frozen=True)
class Verdict:
    """One detector's judgement of one prompt."""

    detector: str
    score: float | None
    """Raw; higher is less safe. None if the prompt could not be scored."""
    probability: float | None
    """Calibrated, 0 to 1."""
    threshold: float
    flagged: bool
    """The score is at or over the threshold, or the prompt could not be scored."""
    has_forged_markers: bool = False
    """The text of a turn holds the template's own marker tokens."""
    error: str | None = None
    categories: Mapping[str, float | None] | None = None
    """Calibrated probability by category key, None for a key without a head; None without heads."""

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Timings:
    """Seconds on one request."""

    prefill_s: float
    """The model's reading of the prompt, capture included."""
    guard_s: float
    """The guard's own work between prefill and first token: pooling, scoring and deciding."""
    first_token_s: float
    """From the start of the request to its first token."""
    total_s: float


@dataclass(frozen=True)
class Token:
    """One token of a streamed reply."""

    token_id: int
    text: str
    """What this token adds to the reply; empty while a character is incomplete."""
    route: str
    logprob: float


@dataclass(frozen=True)
class Reply:
    """A whole reply."""

    text: str
    token_ids: tuple[int, ...]
    route: str
    """`pass`, a responder's name, `stopped`, `switched`, `error` or `pass_unscored`."""
    verdicts: tuple[Verdict, ...]
    finish_reason: str
    """`stop`, `length`, `replaced` (a fixed text at its end), `ended` (by a detector that watches
    replies), `scored` (no token was asked for), `abandoned` or `error`."""
    timings: Timings
    error: str | None = None
    would_route: str | None = None
    """Where a guard that only observes would have sent the prompt; None if the guard acts."""
    reply_verdict: Verdict | None = None
    """On the reply itself, by a detector that watches it; None if there is none."""
    num_scanned: int = 0
    """Tokens of the reply that such a detector has judged, from its start."""

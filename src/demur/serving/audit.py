"""The audit log: a line for each request that the server answered, refused or failed at.

Lines are chained by hashes, so that an edited, dropped or reordered one is found (docs/audit.md).
No text of a chat is written unless that is switched on, and then only for a stated time.
"""

import hmac
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import demur
from demur.core.errors import ConfigError
from demur.core.results import Verdict
from demur.serving._audit_chain import Chain, Clock
from demur.serving._audit_lines import AuditError, BrokenChainError, Head, read_lines

__all__ = [
    "AuditError",
    "AuditLog",
    "AuditRecord",
    "AuditVerdict",
    "BrokenChainError",
    "Head",
    "prune",
]

Action = Literal[
    "answered", "responded", "refused", "blocked", "stopped", "observed", "judged", "error"
]
"""Answered by the model; by a responder; refused in words; blocked with an error; stopped half way;
answered by the model under a guard that only observes; judged only; not answered."""

MAX_DAYS = 36_500


@dataclass(frozen=True)
class AuditVerdict:
    """One detector's judgement, as it is recorded."""

    detector: str
    version: str
    score: float | None
    """None if the prompt could not be scored."""
    threshold: float
    flagged: bool

    @classmethod
    def of(cls, verdict: Verdict, *, version: str) -> Self:
        """Return what is recorded of a verdict: not why a score is missing, which may quote it."""
        return cls(
            verdict.detector, version, verdict.score, verdict.threshold, flagged=verdict.flagged
        )


@dataclass(frozen=True)
class AuditRecord:
    """What became of one request."""

    request_id: str
    endpoint: str
    model: str
    action: Action
    route: str
    """`pass`, a responder's name, `error` or `pass_unscored`."""
    finish_reason: str | None = None
    verdicts: tuple[AuditVerdict, ...] = ()
    prompt_scanned: bool = False
    """All detectors of prompts have scored it."""
    num_reply_tokens_scanned: int = 0
    """Tokens of the reply that a detector has read."""
    would_route: str | None = None
    """Where a guard that only observes would have sent the prompt."""
    num_prompt_tokens: int = 0
    num_reply_tokens: int = 0
    guard_s: float = 0.0
    """Seconds that the guard itself took."""
    error: str | None = None
    """The code that the client saw, such as `not_answered`; a message may quote the prompt."""
    safety_identifier: str | None = None
    """What the client calls its user; only a keyed hash of it is written."""
    prompt: str | None = None
    """Written only by a log that keeps texts; so is the reply."""
    reply: str | None = None

    def fields(self) -> dict[str, object]:
        """Return what is recorded whether texts are kept or not, but the safety identifier."""
        return {
            "request_id": self.request_id,
            "endpoint": self.endpoint,
            "model": self.model,
            "action": self.action,
            "route": self.route,
            "finish_reason": self.finish_reason,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "scanned": {
                "prompt": self.prompt_scanned,
                "reply_tokens": self.num_reply_tokens_scanned,
            },
            "would_route": self.would_route,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_reply_tokens": self.num_reply_tokens,
            "guard_s": self.guard_s,
            "error": self.error,
        }


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class AuditLog:
    """An audit log that is open for writing, by any number of threads of one process.

    Args:
        path: The file. A log that is there goes on; what a killed process left is put in order.
        keep_text: Write prompts and replies too.
        retention_days: How long texts are kept; needed with `keep_text`. `prune` removes them.
        fsync: Wait for the disk with each line, so that a power failure loses none.
        identifier_key: Of the hashes of safety identifiers. None draws one that is stored nowhere:
            a user's requests can then be told together until the log is closed, and a name cannot
            be tried out.
        clock: Gives each line its time.

    Raises:
        ConfigError: Another process writes the file, its end is broken, it cannot be opened, or
            texts were to be kept for no stated time.
        AuditError: The first line could not be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_text: bool = False,
        retention_days: float | None = None,
        fsync: bool = True,
        identifier_key: bytes | None = None,
        clock: Clock = utc_now,
    ) -> None:
        if keep_text and retention_days is None:
            raise ConfigError("keep_text needs retention_days: say how long texts may be kept")
        self.keep_text = keep_text
        self._retention = None if retention_days is None else _retention(retention_days)
        self._key = secrets.token_bytes(32) if identifier_key is None else identifier_key
        self._clock = clock
        self._chain = Chain(path, fsync=fsync, clock=clock)
        start = {
            "demur": demur.__version__,
            "keep_text": keep_text,
            "retention_days": retention_days,
            "identifier_key": "drawn" if identifier_key is None else "given",
        }
        try:
            self._chain.append("start", start)
        except BaseException:
            self._chain.close()
            raise

    @property
    def head(self) -> Head:
        """The newest line; its hash, kept elsewhere, proves all lines up to it."""
        return self._chain.head

    def write(self, record: AuditRecord) -> None:
        """Write one line, whole or not at all.

        Raises:
            AuditError: It could not be written, such as on a full disk, or the log is closed. Once
                the cause is gone, lines can be written again.
        """
        fields = {**record.fields(), "safety_identifier": self._pseudonym(record.safety_identifier)}
        self._chain.append("request", fields, text=self._text(record))

    def _text(self, record: AuditRecord) -> Mapping[str, object] | None:
        has_text = record.prompt is not None or record.reply is not None
        if not (self.keep_text and has_text):
            return None
        return {"prompt": record.prompt, "reply": record.reply}

    def _pseudonym(self, identifier: str | None) -> str | None:
        if identifier is None:
            return None
        content = identifier.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, content, "sha256").hex()

    def prune(self) -> int:
        """Remove texts that were kept for long enough; to be called at least once a day.

        Returns:
            The number of texts that were removed.

        Raises:
            ConfigError: The log was opened without a retention time.
            AuditError: The log could not be written; it is as before.
            BrokenChainError: A line or text is not what was written; nothing is removed.
        """
        if self._retention is None:
            raise ConfigError("the audit log was opened without retention_days")
        return self._chain.prune(self._clock() - self._retention)

    def close(self) -> None:
        """Write the last line and let go of the file; closing again does nothing.

        Raises:
            AuditError: The last line could not be written; the file is closed all the same.
        """
        if self._chain.is_closed:
            return
        try:
            self._chain.append("stop", {})
        finally:
            self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def prune(path: Path, *, days: float | None = None, clock: Clock = utc_now) -> int:
    """Remove texts that were kept for long enough from a log that nobody writes.

    Args:
        path: The log.
        days: How long texts may be kept; None takes the time with which it was last opened.
        clock: Says what time it is.

    Returns:
        The number of texts that were removed.

    Raises:
        ConfigError: There is no such log, another process writes it, or no time is stated.
        AuditError: The log could not be written; it is as before.
        BrokenChainError: A line or text is not what was written; nothing is removed.
    """
    if not path.is_file():
        raise ConfigError(f"there is no audit log {path}")
    chain = Chain(path, fsync=True, clock=clock)
    try:
        stated = _stated_days(path) if days is None else days
        if stated is None:
            raise ConfigError(f"{path} was written without retention_days: say how many days")
        return chain.prune(clock() - _retention(stated))
    finally:
        chain.close()


def _stated_days(path: Path) -> float | None:
    """Return the retention time with which a log was last opened."""
    days = None
    with path.open("rb") as file:
        for line in read_lines(file):
            if line.fields["kind"] == "start":
                days = line.fields.get("retention_days")
    return days


def _retention(days: float) -> timedelta:
    is_number = isinstance(days, int | float) and math.isfinite(days)
    if not is_number or not 0 <= days <= MAX_DAYS:
        raise ConfigError(f"retention_days is {days!r}: expected 0 to {MAX_DAYS} days")
    return timedelta(days=days)

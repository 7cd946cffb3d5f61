"""What tests of the audit log share: a clock that is set by hand, records, and lines as JSON.

Hashes are computed here from the description in `docs/audit.md`, not by the code under test.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from demur.serving.audit import AuditLog, AuditRecord, AuditVerdict

PROMPT = "what does the heron eat?"
REPLY = "fish, \ud83d and frogs"
"""With half a surrogate pair, as JSON may hold it and UTF-8 may not."""
USER = "user-0042"

Fields = dict[str, Any]


@dataclass
class Clock:
    """Tells the time that a test sets."""

    now: datetime = datetime(2024, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def wait(self, *, days: float) -> None:
        self.now += timedelta(days=days)


def record(number: int = 0, *, score: float = -3.25) -> AuditRecord:
    verdict = AuditVerdict("linear", "edb1beb5", score, 0.5, flagged=False)
    return AuditRecord(
        request_id=f"chatcmpl-{number}",
        endpoint="/v1/chat/completions",
        model="tiny",
        action="answered",
        route="pass",
        finish_reason="stop",
        verdicts=(verdict,),
        prompt_scanned=True,
        num_prompt_tokens=12,
        num_reply_tokens=7,
        guard_s=1e-4,
        safety_identifier=USER,
        prompt=PROMPT,
        reply=REPLY,
    )


def open_log(path: Path, clock: Clock | None = None, *, days: float | None = None) -> AuditLog:
    """Open a log that does not wait for the disk; it keeps texts if it is said how long."""
    keeps = days is not None
    return AuditLog(path, fsync=False, clock=clock or Clock(), keep_text=keeps, retention_days=days)


def write_log(path: Path, *, num_requests: int = 3, days: float | None = None) -> Path:
    """Write a log and close it: a start line, requests, a stop line."""
    with open_log(path, days=days) as log:
        for number in range(num_requests):
            log.write(record(number))
    return path


def head_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def lines_of(path: Path) -> list[Fields]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def hash_of(fields: Mapping[str, Any]) -> str:
    outside = ("hash", "text", "text_salt")
    hashed = {name: value for name, value in fields.items() if name not in outside}
    return hashlib.sha256(canonical(hashed)).hexdigest()


def with_own_hash(fields: Mapping[str, Any]) -> Fields:
    """Return a forged line: its hash is right."""
    return {**fields, "hash": hash_of(fields)}


def rewrite(path: Path, lines: list[Fields]) -> None:
    path.write_bytes(b"".join(canonical(line) + b"\n" for line in lines))


def rechained(lines: list[Fields]) -> list[Fields]:
    """Return lines as they would be, had they been written so: a forgery of the whole log."""
    found: list[Fields] = []
    for number, line in enumerate(lines, start=1):
        previous = found[-1]["hash"] if found else "0" * 64
        found.append(with_own_hash({**line, "sequence": number, "previous": previous}))
    return found

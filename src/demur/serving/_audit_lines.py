"""What a line of the audit log is: its one form, its hash, and what it means to follow another.

A line is a JSON object in ASCII with sorted keys and no spaces, so that one content has one form
only: a changed byte is found even where it would mean the same. `hash` is the SHA-256 of the object
without `hash`, `text` and `text_salt`; `previous` is the hash of the line before. A text stands
outside the hash and is tied to it by `text_sha256`, the SHA-256 of a random salt and the text: a
text can be removed with its salt, and then neither be proven nor guessed, while the chain holds.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal, Self

from demur.core.errors import DataError, DemurError

MAX_LINE_BYTES = 64 * 2**20
"""So that a file without line ends cannot fill the memory."""
D_SALT = 16
"""Bytes."""
HEAD_BYTES = 192
"""Size of a head file: one write within one sector, whole or not at all."""
HEAD = re.compile(
    rb'\{"hash":"(?P<hash>[0-9a-f]{64})",'
    rb'"sequence":(?P<sequence>\d{1,15}),"start":(?P<start>\d{1,15})\} *\n'
)
"""Its content."""

UNHASHED = frozenset({"hash", "text", "text_salt"})
SHAPE = {"sequence": int, "time": str, "kind": str, "previous": str, "hash": str}
"""What each line has."""

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)

Break = Literal["edited", "order", "torn", "head", "text"]
"""What can be wrong with a log."""


class AuditError(DemurError, OSError):
    """A line could not be written; none of it stands in the log."""


class BrokenChainError(DataError):
    """A line is not what was written, or not where it was written."""

    def __init__(self, line: int, kind: Break, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.kind = kind
        self.what = what


@dataclass(frozen=True)
class Head:
    """A line, as what follows it knows it; the newest one stands in the head file."""

    sequence: int
    """Number of the line, from 1; 0 before the first line."""
    hash: str
    """64 hexadecimal digits."""
    start: int
    """Bytes before the line: where to look first, never what decides."""

    def to_bytes(self) -> bytes:
        """Return the content of a head file."""
        fields = {"sequence": self.sequence, "hash": self.hash, "start": self.start}
        return encoded(fields).ljust(HEAD_BYTES - 1) + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return what a head file says; an empty one was made, and no line written yet.

        Raises:
            DataError: It is not what `to_bytes` returns.
        """
        if not content:
            return cls(0, NO_HASH, 0)
        found = HEAD.fullmatch(content)
        if found is None:
            raise DataError(f"the head file holds {content[:40]!r}: it was edited")
        return cls(int(found["sequence"]), found["hash"].decode(), int(found["start"]))


NO_HASH = "0" * 64
GENESIS = Head(0, NO_HASH, 0)
"""What the first line follows."""


@dataclass(frozen=True)
class Line:
    """A line that fits its hash."""

    fields: Mapping[str, Any]
    content: bytes
    """The line end included."""
    start: int
    """Bytes before it."""

    @property
    def head(self) -> Head:
        """The line, as the next one knows it."""
        return Head(self.fields["sequence"], self.fields["hash"], self.start)

    @property
    def end(self) -> int:
        """Bytes up to its end."""
        return self.start + len(self.content)

    @property
    def has_text(self) -> bool:
        """Something stands outside the hash."""
        return "text" in self.fields or "text_salt" in self.fields

    def require_fitting_text(self) -> None:
        """Refuse a text that is not the one that the line was written with.

        Raises:
            BrokenChainError: It is another.
        """
        text, written = self.fields.get("text"), self.fields.get("text_salt")
        try:
            salt = bytes.fromhex(written or "")
            found = text_hash(text, salt) if salt.hex() == written else None
        except (TypeError, ValueError):
            found = None
        if found is None or found != self.fields.get("text_sha256"):
            what = "edited: its text does not fit its text_sha256"
            raise BrokenChainError(self.head.sequence, "text", what)

    def without_text(self) -> bytes:
        """Return the line's content after its text and salt are removed; the hash stays valid."""
        kept = {k: v for k, v in self.fields.items() if k not in ("text", "text_salt")}
        return encoded(kept) + b"\n"


def encoded(fields: object) -> bytes:
    """Return the one form of a JSON value.

    Raises:
        ValueError: It holds NaN or an infinity.
    """
    return ENCODER.encode(fields).encode("ascii")


def as_time(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC; such texts sort like the times."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def text_hash(text: object, salt: bytes) -> str:
    """Return what ties a text to its line."""
    return hashlib.sha256(salt + encoded(text)).hexdigest()


def line_hash(fields: Mapping[str, object]) -> str:
    """Return the hash of a line's fields."""
    hashed = {name: value for name, value in fields.items() if name not in UNHASHED}
    return hashlib.sha256(encoded(hashed)).hexdigest()


def next_line(
    fields: Mapping[str, object],
    after: Head,
    *,
    start: int,
    text: Mapping[str, object] | None = None,
) -> Line:
    """Return the line that follows another.

    Args:
        fields: With `time` and `kind`.
        after: The newest line.
        start: Bytes of the log so far.
        text: What may be removed later.

    Raises:
        AuditError: A number is none that JSON can hold, or the line would be too long to be read.
    """
    whole = {**fields, "sequence": after.sequence + 1, "previous": after.hash}
    try:
        if text is not None:
            salt = secrets.token_bytes(D_SALT)
            whole |= {"text": text, "text_salt": salt.hex(), "text_sha256": text_hash(text, salt)}
        whole["hash"] = line_hash(whole)
        content = encoded(whole) + b"\n"
    except ValueError as error:
        raise AuditError(f"a record cannot be written: {error}: expected finite numbers") from error
    if len(content) > MAX_LINE_BYTES:
        raise AuditError(
            f"a record of {len(content)} bytes cannot be written: at most {MAX_LINE_BYTES}, "
            "allow shorter requests or keep no texts"
        )
    return Line(whole, content, start)


def parse(content: bytes, number: int) -> dict[str, Any]:
    """Return the fields of a line that fits its hash.

    Args:
        content: The line end included.
        number: Where it stands in the file, from 1.

    Raises:
        BrokenChainError: It was edited.
    """
    try:
        fields = json.loads(content.decode("ascii"))
        is_ours = encoded(fields) + b"\n" == content and isinstance(fields, dict)
    except (ValueError, RecursionError):
        is_ours = False
    if not is_ours or any(type(fields.get(name)) is not kind for name, kind in SHAPE.items()):
        raise BrokenChainError(number, "edited", "edited: no line that demur writes")
    if line_hash(fields) != fields["hash"]:
        raise BrokenChainError(number, "edited", "edited: its content does not fit its hash")
    return dict(fields)


def read_lines(
    file: BinaryIO, *, after: Head = GENESIS, start: int = 0, stop: int | None = None
) -> Iterator[Line]:
    """Yield lines, each checked against the one before.

    Args:
        file: A log.
        after: The line before the first one to read.
        start: Where to begin, in bytes.
        stop: Lines that begin at or after this offset are left unread; None reads to the end.

    Raises:
        BrokenChainError: The next line was edited, does not follow the one before, or has no end.
    """
    file.seek(start)
    while stop is None or start < stop:
        content = file.readline(MAX_LINE_BYTES)
        if not content:
            return
        number = after.sequence + 1
        if not content.endswith(b"\n") and len(content) < MAX_LINE_BYTES:
            raise BrokenChainError(number, "torn", "torn: the file ends within it")
        line = Line(parse(content, number), content, start)
        _require_order(line, after)
        yield line
        after, start = line.head, line.end


def _require_order(line: Line, after: Head) -> None:
    number, expected = line.head.sequence, after.sequence + 1
    if number != expected:
        raise BrokenChainError(
            expected,
            "order",
            f"dropped, added or reordered: its number is {number}, expected {expected}",
        )
    if line.fields["previous"] != after.hash:
        raise BrokenChainError(
            expected,
            "order",
            "dropped, added or reordered: it was written after another line than the one before it",
        )


def end_of(file: BinaryIO, head: Head) -> int | None:
    """Return where a line ends that should begin at `head.start`; None if it is not there."""
    if head.sequence == 0:
        return 0
    file.seek(head.start)
    content = file.readline(MAX_LINE_BYTES)
    try:
        found = Line(parse(content, head.sequence), content, head.start)
    except BrokenChainError:
        return None
    return found.end if found.head == head else None

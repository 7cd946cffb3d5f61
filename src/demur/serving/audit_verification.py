"""Reads an audit log from its first line to its last and says what is wrong with it, if anything.

Memory does not grow with the log. A log that a server is writing is read up to the line that was
its newest when the reading began.
"""

import fcntl
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from demur.core.errors import ConfigError, DataError
from demur.serving._audit_chain import head_path
from demur.serving._audit_lines import (
    GENESIS,
    HEAD_BYTES,
    Break,
    BrokenChainError,
    Head,
    Line,
    read_lines,
)

HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Problem:
    """The first thing that is wrong."""

    line: int
    """From 1; of lines that are missing, the first."""
    kind: Break
    """A line's content; the order of lines; a torn line; the newest line; a line's text."""
    what: str


@dataclass
class Verification:
    """What was found."""

    num_lines: int = 0
    """Lines that are what was written, where it was written."""
    first_time: str | None = None
    last_time: str | None = None
    head: str = GENESIS.hash
    """Hash of the last of these lines."""
    num_texts: int = 0
    num_texts_pruned: int = 0
    num_texts_edited: int = 0
    num_recoveries: int = 0
    """Times that the log was opened after a process had not closed it properly."""
    is_live: bool = False
    """A process is writing the log."""
    num_lines_after_known: int | None = None
    """Lines after the one whose hash the caller knows; None if no hash was given or none fits."""
    problem: Problem | None = None
    """None if nothing is wrong."""

    @property
    def is_valid(self) -> bool:
        """Nothing is wrong."""
        return self.problem is None

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return {"is_valid": self.is_valid, **asdict(self)}

    def note(self, line: int, kind: Break, *, what: str) -> None:
        """Take note of a problem; the first one counts."""
        self.problem = self.problem or Problem(line, kind, what)


@dataclass(frozen=True)
class _Snapshot:
    """What a log was when the reading began."""

    stop: int
    """Lines that begin here or later were written afterwards."""
    recorded: Head | None
    """The newest line, as the head file says; None if that cannot be told."""
    head_problem: str | None
    """Why not."""
    is_live: bool


@dataclass
class _Reading:
    """A log while it is read."""

    snapshot: _Snapshot
    known_hash: str | None
    found: Verification
    newest: Head = GENESIS
    has_recorded: bool = False
    """The recorded line was met."""
    pruned: tuple[str, int] = ("", 0)
    """Time and number of the newest line whose text is gone."""
    pruned_before: str = ""
    """Up to where texts were removed, as the log says."""

    def __post_init__(self) -> None:
        self._compare()

    def take(self, line: Line) -> None:
        """Take note of a line that fits its hash and the line before."""
        found, fields = self.found, line.fields
        self.newest = line.head
        found.num_lines += 1
        found.head = line.head.hash
        found.first_time = found.first_time or fields["time"]
        found.last_time = fields["time"]
        found.num_recoveries += "recovered" in fields
        self._take_text(line)
        if fields["kind"] == "prune":
            self.pruned_before = max(self.pruned_before, str(fields.get("before")))
        self._compare()

    def _take_text(self, line: Line) -> None:
        found, fields = self.found, line.fields
        if line.has_text:
            try:
                line.require_fitting_text()
                found.num_texts += 1
            except BrokenChainError as error:
                found.num_texts_edited += 1
                found.note(error.line, error.kind, what=error.what)
        elif "text_sha256" in fields:
            found.num_texts_pruned += 1
            self.pruned = max(self.pruned, (fields["time"], line.head.sequence))

    def _compare(self) -> None:
        """See whether the newest line is one whose hash stands elsewhere."""
        recorded = self.snapshot.recorded
        if recorded is not None and self.newest.sequence == recorded.sequence:
            self.has_recorded = self.newest.hash == recorded.hash
        if self.found.num_lines_after_known is not None:
            self.found.num_lines_after_known += 1
        elif self.newest.hash == self.known_hash:
            self.found.num_lines_after_known = 0

    def end(self) -> None:
        """Judge what can be judged only at the end."""
        time, number = self.pruned
        if number and time >= self.pruned_before:
            what = "edited: its text was removed, and no later line says that texts were pruned"
            self.found.note(number, "text", what=what)
        after = self.newest.sequence + 1
        if self.snapshot.head_problem is not None:
            self.found.note(after, "head", what=self.snapshot.head_problem)
        if self.snapshot.recorded is not None:
            self._judge_head(self.snapshot.recorded)
        if self.known_hash is not None and self.found.num_lines_after_known is None:
            what = f"missing: no line has the hash {self.known_hash}"
            self.found.note(after, "head", what=what)

    def _judge_head(self, recorded: Head) -> None:
        after = self.newest.sequence + 1
        if not self.has_recorded:
            what = f"missing: the newest line that was written is line {recorded.sequence}"
            self.found.note(after, "head", what=f"{what}, with the hash {recorded.hash}")
        elif self.newest.sequence != recorded.sequence:
            what = (
                f"added after line {recorded.sequence}, which is the newest that the head file "
                "knows; or the process was killed there, and the next start will say so"
            )
            self.found.note(recorded.sequence + 1, "head", what=what)


def verify(path: Path, *, known_hash: str | None = None) -> Verification:
    """Check each line of a log, and that none is missing at its end.

    Args:
        path: The log; its head file lies beside it.
        known_hash: The hash of any of its lines, kept elsewhere: proves all lines up to that one.

    Raises:
        ConfigError: The file cannot be read, or the hash is none.
    """
    if known_hash is not None and not HASH.fullmatch(known_hash):
        raise ConfigError(f"the hash is {known_hash!r}: expected 64 hexadecimal digits")
    if not path.is_file():
        raise ConfigError(f"there is no audit log {path}")
    try:
        with path.open("rb") as file:
            snapshot = _snapshot(path, file, needs_head=known_hash is None)
            found = Verification(is_live=snapshot.is_live)
            reading = _Reading(snapshot, known_hash, found)
            _read(file, reading)
    except OSError as error:
        raise ConfigError(f"the audit log {path} cannot be read: {error.strerror}") from error
    return found


def _read(file: BinaryIO, reading: _Reading) -> None:
    try:
        for line in read_lines(file, stop=reading.snapshot.stop):
            reading.take(line)
    except BrokenChainError as error:
        reading.found.note(error.line, error.kind, what=error.what)
    else:
        reading.end()


def _snapshot(path: Path, file: BinaryIO, *, needs_head: bool) -> _Snapshot:
    """Return how far to read, and what the head file says.

    Nobody can begin to write meanwhile. Of a log that is being written, what follows the newest
    line that the head file knows may be half a line, and is left unread.
    """
    recorded, head_problem, is_live = None, None, False
    size = os.fstat(file.fileno()).st_size
    try:
        with head_path(path.resolve()).open("rb") as head_file:
            is_live = _is_locked(head_file)
            recorded = Head.from_bytes(_read_steadily(head_file))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        if needs_head:
            head_problem = "the head file is missing: a cut at the log's end would not be seen"
    except DataError as error:
        head_problem = str(error)
    if is_live and recorded is not None:
        size = recorded.start + 1 if recorded.sequence else 0
    return _Snapshot(size, recorded, head_problem, is_live=is_live)


def _is_locked(head_file: BinaryIO) -> bool:
    """Tell whether a process is writing the log; if not, none can until the file is closed."""
    try:
        fcntl.flock(head_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _read_steadily(file: BinaryIO) -> bytes:
    """Return what a file holds while nobody writes it: the same, read twice."""
    before = b"-"
    while (content := os.pread(file.fileno(), HEAD_BYTES + 1, 0)) != before:
        before = content
    return content

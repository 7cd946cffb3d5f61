"""The audit log as a file that is open for writing: locked, recovered, appended to, pruned.

`FILE.head` says which line is the newest, so that lines cut off at the end are missed. It is
overwritten in place by one write of one sector, after its line; so a killed process leaves a head
that is at most one line behind, never one ahead. It is also what is locked: pruning replaces FILE,
but never FILE.head.
"""

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import BinaryIO

from demur.core.errors import ConfigError, DataError
from demur.serving._audit_lines import (
    GENESIS,
    HEAD_BYTES,
    AuditError,
    BrokenChainError,
    Head,
    Line,
    as_time,
    end_of,
    next_line,
    read_lines,
)

PRIVATE = 0o600

Clock = Callable[[], datetime]
"""Returns the time, with its zone."""


def head_path(path: Path) -> Path:
    """Return where the newest line's hash stands."""
    return path.with_name(f"{path.name}.head")


class Chain:
    """A log that one process writes.

    Args:
        path: The file; made if it is missing.
        fsync: Wait for the disk with each line.
        clock: Gives each line its time.

    Raises:
        ConfigError: Another process writes it, it cannot be opened, or its end is not what its head
            file says.
    """

    def __init__(self, path: Path, *, fsync: bool, clock: Clock) -> None:
        self.path = path.resolve()
        self._fsync = fsync
        self._clock = clock
        self._lock = threading.Lock()
        self._prune_lock = threading.Lock()
        self._file = self._head_file = self._inode = -1
        self.head = GENESIS
        """The newest line."""
        self._size = 0
        """Bytes up to its end."""
        self._recovered: dict[str, object] = {}
        """What was amiss when the log was opened; the next line says it."""
        self._must_cut = False
        """Part of a line that failed may stand at the end."""
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise ConfigError(
                    f"the audit log {path} cannot be opened ({error.strerror}): "
                    "name a file that this process may write"
                ) from error
            raise

    def _open(self) -> None:
        has_lines = self.path.exists() and self.path.stat().st_size > 0
        if has_lines and not head_path(self.path).exists():
            raise ConfigError(
                f"{head_path(self.path)} is missing: put it back, or move {self.path} away to "
                "begin a new log"
            )
        self._head_file = os.open(head_path(self.path), os.O_RDWR | os.O_CREAT, PRIVATE)
        try:
            fcntl.flock(self._head_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"the audit log {self.path} is being written by another process: stop it, or name "
                "another file"
            ) from error
        self._beside("pruning").unlink(missing_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
        try:
            self._recover()
        except DataError as error:
            raise ConfigError(
                f"the audit log {self.path} is broken: {error}; see demur audit verify, and move "
                f"it and {head_path(self.path).name} away to begin a new log"
            ) from error
        self._inode = os.fstat(self._file).st_ino

    def _recover(self) -> None:
        """Find the newest line, and move what stands after it aside."""
        recorded = Head.from_bytes(os.pread(self._head_file, HEAD_BYTES + 1, 0))
        with self.path.open("rb") as file:
            self.head, self._size = _newest(file, recorded)
            num_after = self.head.sequence - recorded.sequence
            if num_after:
                self._recovered["num_lines_after_head"] = num_after
            if os.fstat(file.fileno()).st_size > self._size:
                self._recovered["torn"] = self._move_aside(file)

    def _move_aside(self, file: BinaryIO) -> str:
        """Move a torn line into a file of its own; return its name."""
        torn = self._beside(f"torn-{as_time(self._clock()).replace(':', '')}")
        with _created(torn) as aside:
            file.seek(self._size)
            shutil.copyfileobj(file, aside)
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._file, self._size)
        return torn.name

    @property
    def is_closed(self) -> bool:
        """Nothing can be written any more."""
        return self._file < 0

    def append(
        self, kind: str, fields: Mapping[str, object], *, text: Mapping[str, object] | None = None
    ) -> None:
        """Write a line, whole or not at all. Threads may do so at the same time.

        Args:
            kind: Of the line.
            fields: What it says; the first line also says what was amiss when the log was opened.
            text: What may be removed later.

        Raises:
            AuditError: It could not be written; once the cause is gone, the next one can be.
        """
        with self._lock:
            self._require_untouched()
            line = self._line(kind, fields, start=self._size, text=text)
            try:
                _write_all(self._file, line.content)
                self._wait_for(self._file)
                self._write_head(line.head)
            except BaseException as error:
                self._must_cut = True
                self._cut()
                if isinstance(error, OSError):
                    raise self._failed("written", error) from error
                raise
            self._advance(line)

    def _line(
        self,
        kind: str,
        fields: Mapping[str, object],
        *,
        start: int,
        text: Mapping[str, object] | None = None,
    ) -> Line:
        recovered = {"recovered": self._recovered} if self._recovered else {}
        stamped = {**fields, **recovered, "kind": kind, "time": as_time(self._clock())}
        return next_line(stamped, self.head, start=start, text=text)

    def _advance(self, line: Line) -> None:
        self.head, self._size, self._recovered = line.head, line.end, {}

    def _write_head(self, head: Head) -> None:
        os.pwrite(self._head_file, head.to_bytes(), 0)
        self._wait_for(self._head_file)

    def _wait_for(self, file: int) -> None:
        if self._fsync:
            os.fsync(file)

    def _cut(self) -> None:
        """Take back a line that failed; where that fails too, the next write tries again."""
        try:
            os.ftruncate(self._file, self._size)
            self._write_head(self.head)
        except OSError:
            return
        self._must_cut = False

    def _require_untouched(self) -> None:
        """See that the file is still the one that was opened, and ends where it was left."""
        if self.is_closed:
            raise AuditError(f"the audit log {self.path} is closed")
        if self._must_cut:
            self._cut()
        if self._must_cut:
            raise AuditError(f"the audit log {self.path} still ends in part of a line that failed")
        try:
            status = self.path.stat()
        except OSError as error:
            raise self._failed("found", error) from error
        if (status.st_ino, status.st_size) != (self._inode, self._size):
            raise AuditError(
                f"the audit log {self.path} was changed by another process: stop it, move the file "
                f"and {head_path(self.path).name} away and start anew"
            )

    def _failed(self, what: str, error: OSError) -> AuditError:
        return AuditError(f"the audit log {self.path} could not be {what}: {error.strerror}")

    def prune(self, before: datetime) -> int:
        """Remove the texts of older lines from the log: all of them or none.

        Lines that stand there already are copied while others are written; only the last few make
        writers wait. Files of torn lines, which may hold texts, go as well once they are older.

        Args:
            before: With its zone.

        Returns:
            The number of texts that were removed.

        Raises:
            AuditError: The log could not be written; it is as before.
            BrokenChainError: A line or text is not what was written; nothing is removed.
        """
        with self._prune_lock:
            temporary = self._beside("pruning")
            try:
                num_torn = self._remove_torn(before)
                with _created(temporary) as copy:
                    pruned = _Copy(copy, as_time(before))
                    pruned.extend(self.path, stop=self._size)
                    fields = {
                        "before": as_time(before),
                        "num_texts": pruned.num_texts,
                        "num_torn": num_torn,
                    }
                    if pruned.num_texts:
                        self._replace(pruned, temporary, fields=fields)
                    else:
                        self.append("prune", fields)
            except AuditError:
                raise
            except OSError as error:
                raise self._failed("pruned", error) from error
            finally:
                temporary.unlink(missing_ok=True)
        return pruned.num_texts

    def _replace(self, pruned: "_Copy", temporary: Path, *, fields: Mapping[str, object]) -> None:
        """Copy what was written meanwhile, add a line, and put the copy in the log's place."""
        with self._lock:
            self._require_untouched()
            pruned.extend(self.path, stop=self._size)
            line = self._line("prune", fields, start=pruned.size)
            pruned.file.write(line.content)
            pruned.file.flush()
            copy = pruned.file.fileno()
            owner = os.fstat(self._file)
            os.fchown(copy, owner.st_uid, owner.st_gid)
            os.fchmod(copy, stat.S_IMODE(owner.st_mode))
            os.fsync(copy)
            temporary.replace(self.path)
            os.dup2(copy, self._file, inheritable=False)
            self._inode = os.fstat(copy).st_ino
            self._advance(line)
            self._write_head(line.head)
            _sync_folder(self.path.parent)

    def _remove_torn(self, before: datetime) -> int:
        """Remove files of torn lines, which may hold texts."""
        beside = self.path.parent.glob(f"{escape(self.path.name)}.torn-*")
        old = [torn for torn in beside if torn.stat().st_mtime < before.timestamp()]
        for torn in old:
            torn.unlink()
        return len(old)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def close(self) -> None:
        """Close the files and let go of the lock; closing again does nothing."""
        with self._lock:
            for file in (self._file, self._head_file):
                if file >= 0:
                    os.close(file)
            self._file = self._head_file = -1


class _Copy:
    """A copy of a log in the making, without the texts of older lines."""

    def __init__(self, file: BinaryIO, before: str) -> None:
        self.file = file
        self.num_texts = 0
        """Texts that the copy lacks."""
        self.size = 0
        self._before = before
        self._newest = GENESIS
        self._read = 0
        """Bytes of the log that were read."""

    def extend(self, path: Path, *, stop: int) -> None:
        """Copy the lines that were not copied yet, up to an offset.

        Raises:
            BrokenChainError: A line, or a text to be removed, is not what was written.
        """
        with path.open("rb") as log:
            for line in read_lines(log, after=self._newest, start=self._read, stop=stop):
                content = line.content
                if line.has_text and line.fields["time"] < self._before:
                    line.require_fitting_text()
                    content = line.without_text()
                    self.num_texts += 1
                self.file.write(content)
                self.size += len(content)
                self._newest, self._read = line.head, line.end


def _newest(file: BinaryIO, recorded: Head) -> tuple[Head, int]:
    """Return the newest whole line of a log and where it ends.

    Args:
        file: The log.
        recorded: What its head file says. Lines are checked from there on; or all, if it is not
            where it should be: a process may have been killed just after a log was pruned.

    Raises:
        BrokenChainError: A line does not fit, or the recorded one is missing.
    """
    end = end_of(file, recorded)
    is_known = end is not None
    newest, end = (recorded, end) if end is not None else (GENESIS, 0)
    try:
        for line in read_lines(file, after=newest, start=end):
            newest, end = line.head, line.end
            is_known = is_known or newest.hash == recorded.hash
    except BrokenChainError as error:
        if error.kind != "torn":
            raise
    if not is_known:
        what = f"missing: the newest line that was written is line {recorded.sequence}"
        raise BrokenChainError(newest.sequence + 1, "head", what)
    return newest, end


def _created(path: Path) -> BinaryIO:
    """Return a new file that its owner alone may read."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
    return os.fdopen(os.open(path, flags, PRIVATE), "wb")


def _write_all(file: int, content: bytes) -> None:
    """Write bytes: in one call, unless the system takes a part of them only."""
    written = os.write(file, content)
    while written < len(content):
        written += os.write(file, content[written:])


def _sync_folder(path: Path) -> None:
    """Wait until a renamed file is on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""What kills, second writers, full disks and other programs leave of an audit log."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.serving.audit import AuditError, AuditLog
from demur.serving.audit_verification import verify
from tests.audit_logs import (
    head_file,
    lines_of,
    open_log,
    record,
    rewrite,
    with_own_hash,
    write_log,
)

write_bytes = os.write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.mark.parametrize("torn", [b'{"action":"answ', b"\0" * 5000, b"\xff"])
def test_a_torn_line_is_moved_aside_and_the_next_start_says_so(path: Path, torn: bytes) -> None:
    whole = write_log(path).read_bytes()
    path.write_bytes(whole + torn)
    assert verify(path).problem is not None
    write_log(path)
    (aside,) = path.parent.glob("audit.jsonl.torn-*")
    assert aside.read_bytes() == torn
    assert path.read_bytes().startswith(whole)
    assert lines_of(path)[5]["recovered"] == {"torn": aside.name}
    found = verify(path)
    assert (found.is_valid, found.num_recoveries) == (True, 1)


def test_a_head_that_a_kill_left_behind_is_caught_up_and_the_next_start_says_so(path: Path) -> None:
    with open_log(path) as log:
        log.write(record())
        behind = head_file(path).read_bytes()
        log.write(record())
        killed = path.read_bytes()
    path.write_bytes(killed)
    head_file(path).write_bytes(behind)
    problem = verify(path).problem
    assert problem is not None
    assert (problem.line, problem.kind) == (3, "head")
    write_log(path)
    assert lines_of(path)[3]["recovered"] == {"num_lines_after_head": 1}
    assert verify(path).is_valid


def test_a_killed_process_loses_no_line_that_was_written(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from demur.serving.audit import AuditLog\n"
        "from tests.audit_logs import record\n"
        "log = AuditLog(Path(sys.argv[1]), fsync=False)\n"
        "number = 0\n"
        "while True:\n"
        "    log.write(record(number)); print(number, flush=True); number += 1"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(200):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        num_told = 200 + len(process.stdout.readlines())
    write_log(path, num_requests=1)
    requests = [line["request_id"] for line in lines_of(path) if line["kind"] == "request"]
    assert requests[:num_told] == [f"chatcmpl-{number}" for number in range(num_told)]
    assert verify(path).is_valid


def cut_last_line(path: Path) -> None:
    rewrite(path, lines_of(path)[:-1])


def edit_last_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"kind":"stop"', b'"kind":"spot"'))


def forge_last_line(path: Path) -> None:
    *lines, last = lines_of(path)
    rewrite(path, [*lines, with_own_hash({**last, "kind": "spot"})])


def remove_log(path: Path) -> None:
    path.unlink()


def remove_head(path: Path) -> None:
    head_file(path).unlink()


def edit_head(path: Path) -> None:
    head_file(path).write_bytes(
        head_file(path).read_bytes().replace(b'"sequence":5', b'"sequence":x')
    )


@pytest.mark.parametrize(
    "tamper",
    [cut_last_line, edit_last_line, forge_last_line, remove_log, remove_head, edit_head],
)
def test_a_log_whose_end_is_not_what_was_written_is_not_gone_on_with(
    path: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(write_log(path))
    before = path.read_bytes() if path.exists() else b""
    with pytest.raises(ConfigError, match=r"move .* away to begin a new log"):
        open_log(path)
    assert (path.read_bytes() if path.exists() else b"") == before


def test_a_log_has_one_writer_at_a_time(path: Path) -> None:
    with open_log(path), pytest.raises(ConfigError, match="by another process"):
        open_log(path)
    write_log(path, num_requests=1)
    assert verify(path).is_valid


@pytest.mark.parametrize("name", ["missing/audit.jsonl", "folder"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=name):
        open_log(tmp_path / name)


def write_half(file: int, content: bytes) -> int:
    """Write to a disk that is full after half a line."""
    if len(content) < 100:
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    return write_bytes(file, content[: len(content) // 2])


def test_a_full_disk_leaves_no_part_of_a_line_and_the_log_goes_on_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(path) as log:
        before = path.read_bytes(), head_file(path).read_bytes()
        with monkeypatch.context() as full:
            full.setattr(os, "write", write_half)
            with pytest.raises(AuditError, match="No space left"):
                log.write(record(1))
        assert (path.read_bytes(), head_file(path).read_bytes()) == before
        log.write(record(2))
    assert [line.get("request_id") for line in lines_of(path)] == [None, "chatcmpl-2", None]
    assert verify(path).is_valid


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Let the system itself refuse to let files grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_itself_cuts_short_leaves_no_part_of_a_line(path: Path) -> None:
    with open_log(path) as log:
        before = path.read_bytes()
        with file_size_limit(len(before) + 100), pytest.raises(AuditError, match="too large"):
            log.write(record())
        assert path.read_bytes() == before
    assert verify(path).is_valid


def test_a_part_of_a_line_that_could_not_be_taken_back_is_taken_back_before_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    with open_log(path) as log:
        with monkeypatch.context() as full:
            full.setattr(os, "write", write_half)
            full.setattr(os, "ftruncate", refuse)
            for _ in range(2):
                with pytest.raises(AuditError):
                    log.write(record(1))
        log.write(record(2))
    assert [line.get("request_id") for line in lines_of(path)] == [None, "chatcmpl-2", None]
    assert verify(path).is_valid


def test_an_interruption_leaves_no_line_that_the_head_does_not_know(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with open_log(path) as log:
        monkeypatch.setattr(os, "pwrite", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.write(record(1))
        log.write(record(2))
    assert [line.get("request_id") for line in lines_of(path)] == [None, "chatcmpl-2", None]
    assert verify(path).is_valid


def test_a_line_waits_for_the_disk_before_the_head_names_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    with AuditLog(path) as log:
        before = head_file(path).read_bytes()
        monkeypatch.setattr(os, "fsync", lambda _: heads.append(head_file(path).read_bytes()))
        log.write(record())
        assert heads == [before, head_file(path).read_bytes()]
    assert before != heads[1]


def test_a_head_that_may_not_be_on_the_disk_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def fail_at_the_head(_: int) -> None:
        heads.append(head_file(path).read_bytes())
        if len(heads) == 2:
            raise OSError(EIO, os.strerror(EIO))

    with AuditLog(path) as log:
        before = path.read_bytes(), head_file(path).read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail_at_the_head)
            with pytest.raises(AuditError, match="error"):
                log.write(record(1))
        assert heads[1] != before[1]
        assert (path.read_bytes(), head_file(path).read_bytes()) == before
        log.write(record(2))
    assert verify(path).is_valid


def append_foreign(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


def rotate(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def exchange(path: Path) -> None:
    """Put a file of the same content in its place, as editors do."""
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("interfere", [append_foreign, rotate, exchange, cut_last_line])
def test_a_log_that_others_touched_is_not_written_to(
    path: Path, interfere: Callable[[Path], None]
) -> None:
    log = open_log(path)
    log.write(record())
    interfere(path)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(AuditError):
        log.write(record())
    with pytest.raises(AuditError):
        log.close()
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_the_first_line_that_cannot_be_written_lets_go_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "write", write_half)
        with pytest.raises(AuditError):
            open_log(path)
    write_log(path)
    assert verify(path).is_valid

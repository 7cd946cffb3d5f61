"""Texts go when their time is over; the log stays valid, whatever happens on the way."""

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.serving import audit
from demur.serving.audit import AuditError, AuditLog, BrokenChainError
from demur.serving.audit_verification import verify
from tests.audit_logs import (
    PROMPT,
    Clock,
    Fields,
    head_file,
    lines_of,
    open_log,
    record,
    rewrite,
    write_log,
)

OUTSIDE = ("text", "text_salt")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def open_with_old_texts(path: Path, clock: Clock) -> AuditLog:
    """Open a log, and write two texts that are 40 days old, and one of today."""
    log = open_log(path, clock, days=30)
    log.write(record(0))
    log.write(record(1))
    clock.wait(days=40)
    log.write(record(2))
    return log


def test_old_texts_go_and_all_else_stays(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock) as log:
        before = lines_of(path)
        assert log.prune() == 2
        *after, last = lines_of(path)
    without = [{k: v for k, v in line.items() if k not in OUTSIDE} for line in before[:3]]
    assert after == [*without, before[3]]
    assert (last["kind"], last["num_texts"]) == ("prune", 2)
    assert last["before"] < before[3]["time"]
    assert path.read_text().count(PROMPT) == 1
    found = verify(path)
    assert (found.is_valid, found.num_texts, found.num_texts_pruned) == (True, 1, 2)


def test_a_log_is_written_on_after_it_was_pruned(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock) as log:
        log.prune()
        log.write(record(3))
        with pytest.raises(ConfigError, match="by another process"):
            open_log(path)
    write_log(path, num_requests=1)
    kinds = [line["kind"] for line in lines_of(path)]
    assert kinds[4:] == ["prune", "request", "stop", "start", "request", "stop"]
    assert verify(path).is_valid


def test_pruning_where_nothing_is_old_leaves_a_line_that_says_so(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock) as log:
        log.prune()
        before, inode = path.read_bytes(), path.stat().st_ino
        assert log.prune() == 0
        assert path.read_bytes().startswith(before)
        assert path.stat().st_ino == inode
        assert lines_of(path)[-1]["num_texts"] == 0


def test_lines_written_while_a_log_is_pruned_are_kept(path: Path) -> None:
    clock = Clock()
    num_written = 0
    with open_with_old_texts(path, clock) as log:
        is_over = threading.Event()

        def write() -> None:
            nonlocal num_written
            while not is_over.is_set() or num_written < 50:
                log.write(record(num_written))
                num_written += 1

        writer = threading.Thread(target=write)
        writer.start()
        num_removed = []
        for _ in range(5):
            clock.wait(days=31)
            num_removed.append(log.prune())
        is_over.set()
        writer.join()
    found = verify(path)
    assert (found.is_valid, found.num_texts_pruned) == (True, sum(num_removed))
    assert found.num_texts + found.num_texts_pruned == 3 + num_written


def test_threads_may_prune_at_the_same_time(path: Path) -> None:
    clock = Clock()
    barrier = threading.Barrier(4)

    def prune(_: int) -> int:
        barrier.wait()
        return log.prune()

    with open_with_old_texts(path, clock) as log, ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(prune, range(4))) == [0, 0, 0, 2]
    assert verify(path).is_valid


def refuse(*_: object, **__: object) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("place", "name"), [(Path, "replace"), (os, "fsync"), (os, "fchown")], ids=str
)
def test_a_log_that_cannot_be_pruned_is_as_before(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, place: object, name: str
) -> None:
    with open_with_old_texts(path, clock) as log:
        before = {file: file.read_bytes() for file in path.parent.iterdir()}
        with monkeypatch.context() as full:
            full.setattr(place, name, refuse)
            with pytest.raises(AuditError, match="pruned"):
                log.prune()
        assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
        log.write(record(3))
        assert log.prune() == 2
    assert verify(path).is_valid


def test_a_process_killed_just_after_pruning_leaves_a_log_that_goes_on(
    path: Path, clock: Clock
) -> None:
    with open_with_old_texts(path, clock) as log:
        behind = head_file(path).read_bytes()
        log.prune()
        pruned = path.read_bytes()
    path.write_bytes(pruned)
    head_file(path).write_bytes(behind)
    write_log(path, num_requests=1)
    assert path.read_bytes().startswith(pruned)
    assert lines_of(path)[5]["recovered"] == {"num_lines_after_head": 1}
    assert verify(path).is_valid


def test_what_a_process_killed_while_pruning_left_is_removed(path: Path) -> None:
    write_log(path, days=30)
    unfinished = path.with_name("audit.jsonl.pruning")
    unfinished.write_text(PROMPT)
    write_log(path)
    assert not unfinished.exists()


def edit_text(lines: list[Fields]) -> None:
    lines[1]["text"]["prompt"] = "something else"


def edit_line(lines: list[Fields]) -> None:
    lines[1]["route"] = "pasS"


@pytest.mark.parametrize("tamper", [edit_text, edit_line])
def test_a_broken_log_is_not_pruned_since_that_would_hide_it(
    path: Path, clock: Clock, tamper: Callable[[list[Fields]], None]
) -> None:
    open_with_old_texts(path, clock).close()
    lines = lines_of(path)
    tamper(lines)
    rewrite(path, lines)
    before = path.read_bytes()
    with pytest.raises(BrokenChainError, match="line 2: edited"):
        audit.prune(path, days=30, clock=clock)
    assert path.read_bytes() == before


def test_torn_lines_which_may_hold_texts_go_as_well(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock) as log:
        old, young = path.with_name("audit.jsonl.torn-1"), path.with_name("audit.jsonl.torn-2")
        for file, days in ((old, 31), (young, 29)):
            file.write_text(PROMPT)
            written = (clock.now - timedelta(days=days)).timestamp()
            os.utime(file, (written, written))
        log.prune()
        assert (old.exists(), young.exists()) == (False, True)
        assert lines_of(path)[-1]["num_torn"] == 1


def test_who_may_read_a_log_stays_the_same(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock) as log:
        path.chmod(0o640)
        log.prune()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_log_without_a_retention_time_is_not_pruned(path: Path) -> None:
    with open_log(path) as log, pytest.raises(ConfigError, match="retention_days"):
        log.prune()
    with pytest.raises(ConfigError, match="say how many days"):
        audit.prune(path)


def test_a_closed_log_is_pruned_by_the_time_with_which_it_was_last_opened(
    path: Path, clock: Clock
) -> None:
    open_with_old_texts(path, clock).close()
    open_log(path, clock, days=50).close()
    assert audit.prune(path, clock=clock) == 0
    assert audit.prune(path, days=30, clock=clock) == 2
    assert [line["kind"] for line in lines_of(path)[-2:]] == ["prune", "prune"]
    assert verify(path).is_valid


def test_a_log_that_a_server_writes_is_not_pruned_from_outside(path: Path, clock: Clock) -> None:
    with open_with_old_texts(path, clock), pytest.raises(ConfigError, match="by another process"):
        audit.prune(path, days=30)


@pytest.mark.parametrize("days", [-1.0, float("nan"), 1e9])
def test_a_retention_time_that_is_none_is_refused(path: Path, days: float) -> None:
    write_log(path, days=30)
    with pytest.raises(ConfigError, match="days is"):
        audit.prune(path, days=days)


def test_a_log_that_is_not_there_is_not_made(path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no audit log"):
        audit.prune(path, days=30)
    assert list(path.parent.iterdir()) == []

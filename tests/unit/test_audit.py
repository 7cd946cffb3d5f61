"""The audit log as it is written: its lines, and what is kept out of them."""

import hashlib
import hmac
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.core.results import Verdict
from demur.serving.audit import AuditError, AuditLog, AuditVerdict
from demur.serving.audit_verification import verify
from tests.audit_logs import (
    PROMPT,
    REPLY,
    USER,
    Clock,
    canonical,
    hash_of,
    lines_of,
    open_log,
    record,
    write_log,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_each_line_holds_its_hash_and_that_of_the_line_before(path: Path) -> None:
    lines = lines_of(write_log(path, days=30))
    assert [line["kind"] for line in lines] == ["start", "request", "request", "request", "stop"]
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5]
    hashes = [hash_of(line) for line in lines]
    assert [line["hash"] for line in lines] == hashes
    assert [line["previous"] for line in lines] == ["0" * 64, *hashes[:-1]]
    assert path.read_bytes() == b"".join(canonical(line) + b"\n" for line in lines)


def test_a_line_says_what_became_of_a_request(path: Path) -> None:
    request = lines_of(write_log(path))[1]
    assert request["time"] == "2024-03-01T12:00:00.002000Z"
    assert request["verdicts"] == [
        {
            "detector": "linear",
            "version": "edb1beb5",
            "score": -3.25,
            "threshold": 0.5,
            "flagged": False,
        }
    ]
    assert request["scanned"] == {"prompt": True, "reply_tokens": 0}
    assert (request["action"], request["route"], request["error"]) == ("answered", "pass", None)


def test_nothing_that_a_client_wrote_is_kept_by_default(path: Path) -> None:
    write_log(path)
    for file in path.parent.iterdir():
        content = file.read_text(encoding="ascii")
        assert not any(word in content for word in (PROMPT, "frogs", USER, '"text'))


def test_the_reason_why_a_score_is_missing_is_not_recorded() -> None:
    verdict = Verdict("linear", None, None, 0.5, flagged=True, error=f"cannot read {PROMPT!r}")
    assert AuditVerdict.of(verdict, version="1") == AuditVerdict("linear", "1", None, 0.5, True)


def test_a_kept_text_is_tied_to_its_line_by_a_salted_hash(path: Path) -> None:
    request = lines_of(write_log(path, days=30))[1]
    assert request["text"] == {"prompt": PROMPT, "reply": REPLY}
    salted = bytes.fromhex(request["text_salt"]) + canonical(request["text"])
    assert request["text_sha256"] == hashlib.sha256(salted).hexdigest()


def test_equal_texts_have_hashes_that_do_not_show_it(path: Path) -> None:
    requests = lines_of(write_log(path, days=30))[1:4]
    assert len({request["text_sha256"] for request in requests}) == 3


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf"), None])
def test_texts_are_kept_for_a_stated_time_only(path: Path, days: float | None) -> None:
    with pytest.raises(ConfigError, match="retention_days"):
        AuditLog(path, keep_text=True, retention_days=days)
    assert not path.exists()


def identifiers(path: Path, *, key: bytes | None) -> list[str]:
    with AuditLog(path, fsync=False, identifier_key=key) as log:
        for _ in range(2):
            log.write(record())
    return [line["safety_identifier"] for line in lines_of(path)[-3:-1]]


def test_identifiers_are_told_together_within_one_run_only(path: Path) -> None:
    first, second = identifiers(path, key=None), identifiers(path, key=None)
    assert first[0] == first[1] != second[0] == second[1]


def test_a_callers_key_makes_identifiers_the_same_across_runs(path: Path) -> None:
    expected = hmac.new(b"key", USER.encode(), "sha256").hexdigest()
    assert identifiers(path, key=b"key") + identifiers(path, key=b"key") == [expected] * 4


def test_a_log_goes_on_where_it_ended(path: Path) -> None:
    for _ in range(2):
        write_log(path, num_requests=1)
    kinds = [line["kind"] for line in lines_of(path)]
    assert kinds == ["start", "request", "stop"] * 2
    assert verify(path).is_valid


def test_only_the_owner_may_read_a_new_log(path: Path) -> None:
    before = os.umask(0)
    try:
        write_log(path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_record_that_json_cannot_hold_is_refused_and_the_log_goes_on(path: Path) -> None:
    with open_log(path) as log:
        with pytest.raises(AuditError, match="finite"):
            log.write(record(score=float("nan")))
        log.write(record())
    assert len(lines_of(path)) == 3
    assert verify(path).is_valid


def test_a_record_longer_than_a_reader_reads_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.serving._audit_lines.MAX_LINE_BYTES", 2000)
    with open_log(path, days=1) as log:
        with pytest.raises(AuditError, match="at most 2000"):
            log.write(replace(record(), prompt="x" * 2000))
        log.write(record())
    assert verify(path).is_valid


def test_a_closed_log_refuses_to_write_and_closes_twice(path: Path) -> None:
    log = open_log(path)
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.write(record())
    assert len(lines_of(path)) == 2


def test_threads_may_write_at_the_same_time(path: Path) -> None:
    barrier = threading.Barrier(8)

    def write(thread: int) -> None:
        barrier.wait()
        for number in range(25):
            log.write(record(100 * thread + number))

    with open_log(path, Clock()) as log, ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    found = verify(path)
    assert (found.is_valid, found.num_lines) == (True, 202)
    written = {line["request_id"] for line in lines_of(path)[1:-1]}
    assert written == {f"chatcmpl-{100 * t + n}" for t in range(8) for n in range(25)}


def test_the_head_is_the_newest_line(path: Path) -> None:
    with open_log(path) as log:
        log.write(record())
        newest = lines_of(path)[-1]
        assert (log.head.sequence, log.head.hash) == (2, newest["hash"])

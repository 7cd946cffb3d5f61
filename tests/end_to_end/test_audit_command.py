"""`demur audit` on logs that were written by the server's own writer."""

from pathlib import Path

import pytest

from tests.audit_logs import (
    PROMPT,
    head_file,
    lines_of,
    open_log,
    record,
    rewrite,
    write_log,
)
from tests.model_folder import CommandLine, assert_one_line

BROKEN = 4


@pytest.fixture
def demur(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Return the command line; no model is needed."""
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_log(tmp_path / "audit.jsonl", days=30)


def test_a_valid_log_ends_in_exit_code_0_and_its_last_hash(demur: CommandLine, path: Path) -> None:
    outcome = demur("audit", "verify", path)
    lines = lines_of(path)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"5 lines, {lines[0]['time']} to {lines[-1]['time']}" in outcome.stdout
    assert "texts: 3 kept, 0 pruned, 0 edited" in outcome.stdout
    assert lines[-1]["hash"] in outcome.stdout
    assert outcome.stdout.endswith("valid\n")


def test_a_broken_log_ends_in_exit_code_4_and_the_first_broken_line(
    demur: CommandLine, path: Path
) -> None:
    lines = lines_of(path)
    lines[2]["route"] = "error"
    rewrite(path, lines)
    outcome = demur("audit", "verify", path)
    assert outcome.exit_code == BROKEN
    assert "broken: line 3: edited: its content does not fit its hash" in outcome.stdout
    (found,) = demur("audit", "verify", path, "--json").rows()
    assert found["is_valid"] is False
    assert (found["problem"]["line"], found["problem"]["kind"]) == (3, "edited")


def test_a_hash_kept_elsewhere_is_looked_for(demur: CommandLine, path: Path) -> None:
    known = lines_of(path)[3]["hash"]
    outcome = demur("audit", "verify", path, "--head", known)
    assert outcome.exit_code == 0
    assert "lines after the one with the given hash: 1" in outcome.stdout
    rewrite(path, lines_of(path)[:3])
    head_file(path).unlink()
    outcome = demur("audit", "verify", path, "--head", known)
    assert outcome.exit_code == BROKEN
    assert f"no line has the hash {known}" in outcome.stdout


def test_a_log_that_a_server_writes_is_verified(demur: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_bytes(b'{"torn')
    head_file(path).touch()
    with open_log(path) as log:
        log.write(record())
        outcome = demur("audit", "verify", path)
    assert outcome.exit_code == 0, outcome.stdout
    assert "2 lines" in outcome.stdout
    assert "more are being written" in outcome.stdout
    assert "opened 1 times after it had not been closed properly" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("verify", "missing.jsonl"), "there is no audit log missing.jsonl"),
        (("prune", "missing.jsonl"), "there is no audit log missing.jsonl"),
        (("verify", "{path}", "--head", "abc"), "expected 64 hexadecimal digits"),
        (("prune", "{path}", "--days", "-1"), "expected 0 to"),
    ],
    ids=range(4),
)
def test_what_cannot_be_done_ends_in_one_line(
    demur: CommandLine, path: Path, arguments: tuple[str, ...], part: str
) -> None:
    outcome = demur("audit", *(argument.format(path=path) for argument in arguments))
    assert_one_line(outcome, part)


def test_prune_removes_old_texts_and_the_log_stays_valid(demur: CommandLine, path: Path) -> None:
    outcome = demur("audit", "prune", path, "--days", "0")
    assert outcome.exit_code == 0, outcome.stderr
    assert "3 texts removed" in outcome.stdout
    assert PROMPT not in path.read_text()
    assert "texts: 0 kept, 3 pruned, 0 edited" in demur("audit", "verify", path).stdout


def test_prune_leaves_a_log_alone_that_a_server_writes(demur: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    with open_log(path, days=30):
        assert_one_line(demur("audit", "prune", path), "is being written by another process")

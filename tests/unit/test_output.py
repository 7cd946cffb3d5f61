"""An output is whole or resumable: no line is lost, doubled or torn."""

import errno
import json
from contextlib import suppress
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.workflows.output import ResumableOutput

MANIFEST = {"input": "abc", "options": {"seed": 0}}


def lines(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupt(path: Path, rows: int) -> None:
    """Write rows, and be interrupted before the end."""
    with suppress(KeyboardInterrupt), ResumableOutput(path, MANIFEST) as output:
        for row in range(rows):
            output.write({"row": row})
        raise KeyboardInterrupt


def test_a_finished_output_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with ResumableOutput(tmp_path / "out.jsonl", MANIFEST) as output:
        output.write({"row": 0})
    assert lines(tmp_path / "out.jsonl") == [{"row": 0}]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_interrupted_run_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    interrupt(path, 2)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"row": 2, "repl')
    assert not path.exists()
    with ResumableOutput(path, MANIFEST) as output:
        assert output.num_done == 2
        output.write({"row": 2})
    assert lines(path) == [{"row": 0}, {"row": 1}, {"row": 2}]


def test_the_partial_file_of_another_run_is_refused(tmp_path: Path) -> None:
    interrupt(tmp_path / "out.jsonl", 2)
    with pytest.raises(ConfigError, match="differs in options"):
        ResumableOutput(tmp_path / "out.jsonl", {**MANIFEST, "options": {"seed": 1}})


def test_an_interruption_keeps_the_partial_file_for_the_next_run(tmp_path: Path) -> None:
    interrupt(tmp_path / "out.jsonl", 1)
    assert not (tmp_path / "out.jsonl").exists()
    assert ResumableOutput(tmp_path / "out.jsonl", MANIFEST).num_done == 1


def test_a_full_disk_leaves_no_finished_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = ResumableOutput(path, MANIFEST)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), output:
        output.write({"row": 0})
    assert not path.exists()


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    output = ResumableOutput(tmp_path / "out.jsonl", MANIFEST)
    with pytest.raises(ValueError, match="JSON"), output:
        output.write({"score": float("nan")})

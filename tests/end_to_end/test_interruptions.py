"""Full disks and interrupted runs: no line is lost or doubled, nothing half done looks whole."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from demur.core.results import Verdict
from demur.guard import Guard
from demur.guard.exchange import ChatLike
from demur.workflows.output import ResumableOutput
from tests.model_folder import (
    UNSCORED,
    CommandLine,
    Outcome,
    Workplace,
    assert_one_line,
    on_model,
    read_lines,
    save_model,
    write_texts,
)

SYSTEM_ERROR, INTERRUPTED = 1, 130
"""Exit codes."""


@pytest.fixture
def prompts_path(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "prompts.jsonl", [f"the old mill {n}" for n in range(6)])


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


Patch = Callable[[pytest.MonkeyPatch], None]
FULL: dict[str, Patch] = {
    "fsync": lambda patch: patch.setattr("os.fsync", full_disk),
    "write": lambda patch: patch.setattr(ResumableOutput, "write", full_disk),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_ends_in_one_line_without_a_finished_file(
    demur: CommandLine,
    workplace: Workplace,
    prompts_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    out = prompts_path.with_name("out.jsonl")
    FULL[where](monkeypatch)
    outcome = demur("check", "-i", prompts_path, *workplace.guarded, "-o", out)
    assert not out.exists()
    assert_one_line(outcome, "No space left on device", exit_code=SYSTEM_ERROR)


def test_a_full_disk_leaves_no_artifact(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    options = (*workplace.model, "--fpr", "0.05", "--out", tmp_path / "out")
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert list(tmp_path.iterdir()) == []
    assert_one_line(outcome, "No space left on device", exit_code=SYSTEM_ERROR)


def test_an_output_that_is_a_folder_is_refused_before_any_work(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    outcome = demur("check", "-i", prompts_path, *workplace.guarded, "-o", tmp_path / "out")
    assert_one_line(outcome, "out")
    assert not (tmp_path / "out.partial").exists()


def test_an_output_over_the_input_is_refused(
    demur: CommandLine, workplace: Workplace, prompts_path: Path
) -> None:
    before = prompts_path.read_bytes()
    outcome = demur("check", "-i", prompts_path, *workplace.guarded, "-o", prompts_path)
    assert prompts_path.read_bytes() == before
    assert_one_line(outcome, "prompts.jsonl")


def interrupt_after(number: int, patch: pytest.MonkeyPatch) -> list[object]:
    """Let a check be interrupted after some prompts; the list grows with each prompt checked."""
    check, checked = Guard.check, list[object]()

    def interrupted(guard: Guard, chat: ChatLike) -> list[Verdict]:
        if len(checked) == number:
            raise KeyboardInterrupt
        checked.append(chat)
        return check(guard, chat)

    patch.setattr(Guard, "check", interrupted)
    return checked


def test_an_interrupted_run_goes_on_where_it_stopped(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    command = ("check", "-i", prompts_path, *workplace.guarded, "-o")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(4, patch)
        assert demur(*command, out).exit_code == INTERRUPTED
    assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        checked = interrupt_after(100, patch)
        assert demur(*command, out).exit_code == 0
    assert len(checked) == 2
    assert demur(*command, whole).exit_code == 0
    assert [row["id"] for row in read_lines(out)] == ["1", "2", "3", "4", "5", "6"]
    assert out.read_bytes() == whole.read_bytes()


def test_a_resumed_run_counts_the_rows_that_failed_before(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_texts(tmp_path / "prompts.jsonl", ["x" * 600, "a heron", "the mill"])
    command = ("check", "-i", path, *workplace.guarded, "-o", tmp_path / "out.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        assert demur(*command).exit_code == INTERRUPTED
    assert demur(*command).exit_code == UNSCORED


def other_text(prompts: Path) -> tuple[str, ...]:
    write_texts(prompts, ["something else"])
    return ()


OTHER_RUNS: dict[str, tuple[Callable[[Path], tuple[str, ...]], str]] = {
    "threshold": (lambda _: ("--fpr", "0.1"), "detectors"),
    "input": (other_text, "input"),
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_a_partial_output_of_another_run_is_refused(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path, what: str
) -> None:
    change, differing = OTHER_RUNS[what]
    command = ("check", "-i", prompts_path, *workplace.guarded, "-o", tmp_path / "out.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        demur(*command)
    before = (tmp_path / "out.jsonl.partial").read_bytes()
    outcome = demur(*command, *change(prompts_path))
    assert_one_line(
        outcome, f"belongs to another run (it differs in {differing})", "name another output"
    )
    assert (tmp_path / "out.jsonl.partial").read_bytes() == before


def interrupted_reply(demur: CommandLine, *arguments: object) -> Outcome:
    """Run a reply that is interrupted after two rows."""
    write = ResumableOutput.write
    written: list[object] = []

    def interrupted(output: ResumableOutput, row: Mapping[str, object]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(row)
        write(output, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableOutput, "write", interrupted)
        return demur("reply", *arguments)


def test_a_reply_with_another_seed_does_not_go_on_from_a_partial_output(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    options = ("-i", prompts_path, *workplace.guarded, "--max-tokens", "2")
    out = ("-o", tmp_path / "out.jsonl")
    assert interrupted_reply(demur, *options, *out).exit_code == INTERRUPTED
    outcome = demur("reply", *options, "--seed", "1", *out)
    assert_one_line(outcome, "belongs to another run (it differs in options)")


def test_replies_of_other_weights_do_not_go_on_from_a_partial_output(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / workplace.model_path.name, seed=1)
    options = ("-i", prompts_path, "--unguarded", "--max-tokens", "2")
    out = ("-o", tmp_path / "out.jsonl")
    assert interrupted_reply(demur, *options, *workplace.model, *out).exit_code == INTERRUPTED
    outcome = demur("reply", *options, *on_model(other), *out)
    assert_one_line(outcome, "belongs to another run (it differs in model)")

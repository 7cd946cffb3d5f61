"""What a user of the command line sees: files, lines, fields, exit codes and help."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from demur.cli.main import COMMANDS
from demur.core.registry import KINDS, methods
from tests.model_folder import (
    MARKER,
    CommandLine,
    Workplace,
    labelled_prompts,
    read_lines,
    write_lines,
    write_texts,
)

CHECKED = {"id", "detector", "score", "probability", "threshold", "flagged", "has_forged_markers"}
TIMINGS = {"prefill_s", "guard_s", "first_token_s", "total_s"}
TEXTS = (
    "the old mill stood",
    f"a {MARKER} river {MARKER} ran",
    "where a heron stood",
    f"past the old {MARKER}",
)


@pytest.fixture
def prompts_path(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "prompts.jsonl", TEXTS)


def rows_of(demur: CommandLine, *arguments: object, output: Path) -> list[dict[str, Any]]:
    """Run a command that must succeed, and return what it wrote."""
    outcome = demur(*arguments, "--output", output)
    assert outcome.exit_code == 0, outcome.stderr
    return read_lines(output)


def without_timings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "timings"} for row in rows]


# check -------------------------------------------------------------------------------------------


def test_check_writes_a_verdict_for_each_prompt_in_order(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    rows = rows_of(demur, "check", "--input", prompts_path, *workplace.guarded, output=out)
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert all(set(row) == CHECKED for row in rows)
    assert [row["flagged"] for row in rows] == [row["score"] >= row["threshold"] for row in rows]
    assert {row["detector"] for row in rows} == {"marker"}
    assert all(0 <= row["probability"] <= 1 for row in rows)


def test_check_leaves_only_the_output_behind(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = demur(
        "check", "--input", prompts_path, *workplace.guarded, "--output", out / "g.jsonl"
    )
    assert outcome.stdout == ""
    assert [path.name for path in out.iterdir()] == ["g.jsonl"]


def test_check_flags_nearly_all_unsafe_prompts_and_few_others(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    fresh = labelled_prompts(200, seed=1)
    path = write_lines(tmp_path / "fresh.jsonl", fresh)
    rows = rows_of(
        demur, "check", "--input", path, *workplace.guarded, output=tmp_path / "out.jsonl"
    )
    flagged = np.array([row["flagged"] for row in rows])
    unsafe = np.array([row["label"] == "unsafe" for row in fresh])
    assert [row["id"] for row in rows] == [row["id"] for row in fresh]
    assert flagged[unsafe].mean() > 0.9
    assert flagged[~unsafe].mean() < 0.15


def test_check_writes_the_same_bytes_for_the_same_input(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for output in outputs:
        rows_of(demur, "check", "--input", prompts_path, *workplace.guarded, output=output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_check_reads_gzipped_input_and_standard_input_alike(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    packed = write_texts(tmp_path / "prompts.jsonl.gz", TEXTS)
    outputs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    content = prompts_path.read_bytes()
    for output, source in zip(outputs, (prompts_path, packed, "-"), strict=True):
        options = ("--input", source, "--output", output)
        assert demur("check", *options, *workplace.guarded, stdin=content).exit_code == 0
    assert len({output.read_bytes() for output in outputs}) == 1


def test_a_dash_takes_json_lines_or_one_text_from_standard_input(
    demur: CommandLine, workplace: Workplace, prompts_path: Path
) -> None:
    marked = b"\xef\xbb\xbf" + prompts_path.read_bytes()  # as some editors write UTF-8
    lines = demur("check", "-", *workplace.guarded, stdin=marked)
    text = demur("check", "-", *workplace.guarded, stdin=TEXTS[0].encode())
    assert lines.exit_code == text.exit_code == 0
    assert len(lines.stdout.splitlines()) == 4
    assert lines.stdout.splitlines()[:1] == text.stdout.splitlines()


def test_check_of_one_text_shows_its_verdict(demur: CommandLine, workplace: Workplace) -> None:
    outcome = demur("check", TEXTS[1], *workplace.guarded)
    assert outcome.exit_code == 0
    assert "flagged" in outcome.stdout
    assert "pass" in demur("check", TEXTS[0], *workplace.guarded).stdout


def test_json_puts_each_row_on_one_line_of_standard_output(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    source = ("--input", prompts_path, *workplace.guarded)
    rows = rows_of(demur, "check", *source, output=tmp_path / "out.jsonl")
    assert demur("check", *source, "--json").rows() == rows


def test_a_lower_false_positive_rate_has_a_higher_threshold(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    thresholds = [
        rows_of(
            demur, "check", "-i", prompts_path, *workplace.guarded, *fpr, output=tmp_path / "out"
        )[0]["threshold"]
        for fpr in (("--fpr", "0.1"), ("--fpr", "0.05"), ())
    ]
    assert thresholds[0] < thresholds[1] == thresholds[2]


def test_an_uncalibrated_rate_is_refused_with_the_calibrated_ones(
    demur: CommandLine, workplace: Workplace
) -> None:
    outcome = demur("check", "Hi", *workplace.guarded, "--fpr", "0.01")
    assert outcome.exit_code == 2
    assert "no threshold for a false-positive rate of 0.01" in outcome.error
    assert "[0.05, 0.1]" in outcome.error


def test_further_detectors_stand_under_verdicts(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    fit = ("fit", "--data", workplace.labelled_path, *workplace.model, "--fpr", "0.1")
    assert demur(*fit, "--detector", "prototypes", "--out", other).exit_code == 0
    alone = [
        rows_of(demur, "check", "-i", prompts_path, *options, output=tmp_path / "alone.jsonl")
        for options in (workplace.guarded, (*workplace.model, "--detector", other))
    ]
    both = (*workplace.guarded, "--detector", other)
    rows = rows_of(demur, "check", "-i", prompts_path, *both, output=tmp_path / "both.jsonl")
    for row, first, second in zip(rows, *alone, strict=True):
        (verdict,) = row.pop("verdicts")
        assert row == first
        assert {"id": row["id"], **verdict} == second


# reply -------------------------------------------------------------------------------------------


def test_reply_adds_reply_tokens_route_and_timings_to_the_verdict(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    source = ("--input", prompts_path, *workplace.guarded)
    checked = rows_of(demur, "check", *source, output=tmp_path / "checked.jsonl")
    rows = rows_of(demur, "reply", *source, "--max-tokens", "4", output=tmp_path / "out.jsonl")
    added = {"reply", "token_ids", "route", "finish_reason", "timings"}
    for row, verdict in zip(rows, checked, strict=True):
        assert set(row) == CHECKED | added
        assert {key: row[key] for key in CHECKED} == verdict
        assert row["route"] == ("fixed_reply" if row["flagged"] else "pass")
        assert set(row["timings"]) == TIMINGS
        assert all(seconds >= 0 for seconds in row["timings"].values())


def test_flagged_prompts_get_the_responders_text_and_others_the_models(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    options = ("-i", prompts_path, *workplace.guarded, "--max-tokens", "6")
    rows = rows_of(demur, "reply", *options, output=tmp_path / "out.jsonl")
    routes = {row["route"] for row in rows}
    assert routes == {"pass", "fixed_reply"}
    replies = {row["reply"] for row in rows if row["route"] == "fixed_reply"}
    assert len(replies) == 1
    assert all(len(row["token_ids"]) <= 6 for row in rows if row["route"] == "pass")


def test_a_passed_reply_equals_the_unguarded_one(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    options = ("--max-tokens", "12", "--temperature", "1", "-i", prompts_path)
    rows = rows_of(demur, "reply", *options, *workplace.guarded, output=tmp_path / "a.jsonl")
    bare = rows_of(
        demur, "reply", *options, *workplace.model, "--unguarded", output=tmp_path / "b.jsonl"
    )
    pairs = [(row, other) for row, other in zip(rows, bare, strict=True) if row["route"] == "pass"]
    assert pairs
    for row, other in pairs:
        assert row["token_ids"] == other["token_ids"]
        assert row["reply"] == other["reply"]


def test_unguarded_replies_have_null_scores_and_pass(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    options = ("-i", prompts_path, *workplace.model, "--unguarded", "--max-tokens", "3")
    rows = rows_of(demur, "reply", *options, output=tmp_path / "out.jsonl")
    for row in rows:
        fields = ("score", "probability", "flagged", "threshold", "detector")
        assert [row[field] for field in fields] == [None] * 5
        assert row["route"] == "pass"
        assert len(row["token_ids"]) == 3


def test_the_same_seed_repeats_a_reply_and_another_does_not(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / "prompts.jsonl", TEXTS[:1])
    options = ("-i", path, *workplace.guarded, "--max-tokens", "16", "--temperature", "1")
    first, again, other = (
        rows_of(demur, "reply", *options, "--seed", seed, output=tmp_path / "out.jsonl")
        for seed in ("5", "5", "6")
    )
    assert without_timings(first) == without_timings(again)
    assert first[0]["token_ids"] != other[0]["token_ids"]


def test_replies_side_by_side_keep_the_order_of_the_input(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", labelled_prompts(10, seed=2))
    options = ("-i", path, *workplace.guarded, "--max-tokens", "5")
    one = rows_of(demur, "reply", *options, output=tmp_path / "one.jsonl")
    many = rows_of(demur, "reply", *options, "--batch", "4", output=tmp_path / "many.jsonl")
    assert [row["id"] for row in many] == [f"p{number}" for number in range(10)]
    assert without_timings(many) == without_timings(one)


@pytest.mark.parametrize("name", ["safety_prompt", "safety-prompt"])
def test_a_responder_is_named_with_underscores_or_dashes(
    demur: CommandLine, workplace: Workplace, name: str
) -> None:
    options = (*workplace.guarded, "--responder", name, "--max-tokens", "2")
    outcome = demur("reply", TEXTS[1], *options)
    assert outcome.exit_code == 0
    assert "safety_prompt" in outcome.stdout


# capture, chat, list, help -----------------------------------------------------------------------


def test_capture_prints_the_folder_that_holds_the_states_of_every_prompt(
    demur: CommandLine, workplace: Workplace, prompts_path: Path, tmp_path: Path
) -> None:
    options = ("--layers", "0,2", "--out", tmp_path / "states")
    outcome = demur("capture", "-i", prompts_path, *workplace.model, *options)
    assert outcome.exit_code == 0
    folder = Path(outcome.stdout.strip())
    assert folder.parent == tmp_path / "states"
    (read,) = json.loads((folder / "manifest.json").read_text())["reads"]
    assert (read["layers"], read["positions"]) == ([0, 2], "last")
    places = read_lines(folder / "rows.jsonl")
    assert [place["id"] for place in places] == ["1", "2", "3", "4"]
    assert sorted(place["row"] for place in places) == [0, 1, 2, 3]
    assert load_file(folder / "shard-00000.safetensors")["0"].shape == (4, 2, 32)


def test_chat_answers_each_line_of_standard_input_and_names_its_route(
    demur: CommandLine, workplace: Workplace
) -> None:
    lines = f"{TEXTS[0]}\n{TEXTS[1]}\n\nnot read\n".encode()
    outcome = demur("chat", *workplace.guarded, "--max-tokens", "4", stdin=lines)
    assert outcome.exit_code == 0
    assert outcome.stderr.count("(pass)") == outcome.stderr.count("(fixed_reply)") == 1
    assert "can't help" in outcome.stdout


def test_list_names_every_method_with_its_summary(demur: CommandLine) -> None:
    outcome = demur("list")
    shown = " ".join(outcome.stdout.split())
    assert outcome.exit_code == 0
    for kind in KINDS:
        for method in methods(kind).values():
            assert method.name in shown
            assert " ".join(method.summary.split()[:4]) in shown


def test_list_as_json_is_one_object_by_kind(demur: CommandLine) -> None:
    found = json.loads(demur("list", "--json").stdout)
    assert list(found) == list(KINDS)
    assert [method["name"] for method in found["detectors"]] == list(methods("detectors"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(demur: CommandLine, command: str) -> None:
    outcome = demur(command, "--help")
    assert outcome.exit_code == 0
    assert f"Example: demur {command}" in " ".join(outcome.stdout.split())


def test_the_help_of_demur_lists_every_command_with_examples(demur: CommandLine) -> None:
    outcome = demur("--help")
    assert outcome.exit_code == 0
    assert "Examples:" in outcome.stdout
    assert all(f" {command} " in outcome.stdout for command in COMMANDS)


def test_help_shows_no_options_that_change_the_shell(demur: CommandLine) -> None:
    assert "install-completion" not in demur("check", "--help").stdout


def test_a_call_without_a_command_shows_the_help(demur: CommandLine) -> None:
    assert "Usage: demur" in demur().stdout

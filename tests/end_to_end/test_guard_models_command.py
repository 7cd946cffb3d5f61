"""Guard models, questions and cascades through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.model_folder import (
    CommandLine,
    Workplace,
    assert_one_line,
    labelled_prompts,
    write_lines,
)
from tests.tiny_guards import PUBLISHED, guard_model, log_odds, save_guard

LLAMA_GUARD = PUBLISHED[0]
TEXT = "How do I boil an egg?"


@pytest.fixture(scope="module")
def guard_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny Llama Guard."""
    folder = tmp_path_factory.mktemp("models") / "Llama-Guard-3-1B"
    return save_guard(folder, "llama", LLAMA_GUARD.template)


@pytest.fixture
def benign_path(tmp_path: Path) -> Path:
    rows = [row for row in labelled_prompts(160, seed=5) if row["label"] == "safe"]
    return write_lines(tmp_path / "benign.jsonl", rows)


def expected_score() -> float:
    prompt = LLAMA_GUARD.prompt.replace("TEXT", TEXT)
    return log_odds(guard_model("llama"), prompt, LLAMA_GUARD.unsafe, LLAMA_GUARD.safe)


def checked(
    demur: CommandLine, workplace: Workplace, *detectors: object, fpr: str | None = None
) -> list[dict[str, Any]]:
    options = [part for detector in detectors for part in ("--detector", detector)]
    rate = () if fpr is None else ("--fpr", fpr)
    outcome = demur("check", TEXT, *workplace.model, *options, *rate, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return outcome.rows()


def test_a_guard_model_judges_by_its_own_odds_without_any_fit(
    demur: CommandLine, workplace: Workplace, guard_path: Path
) -> None:
    (row,) = checked(demur, workplace, f"guard_model:{guard_path}")
    assert row["score"] == pytest.approx(expected_score(), abs=1e-4)
    assert row["flagged"] == (expected_score() >= 0)
    assert row["threshold"] == 0
    assert row["detector"] == "guard_model:Llama-Guard-3-1B"


def test_a_calibrated_guard_model_is_a_detector_like_any_other(
    demur: CommandLine, workplace: Workplace, guard_path: Path, benign_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "guard"
    options = (*workplace.model, "--data", benign_path, "--fpr", "0.05", "--out", out)
    outcome = demur("calibrate", "--detector", f"guard_model:{guard_path}", *options)
    assert outcome.exit_code == 0, outcome.stderr
    (row,) = checked(demur, workplace, out, fpr="0.05")
    assert row["score"] == pytest.approx(expected_score(), abs=1e-4)
    thresholds = json.loads((out / "thresholds.json").read_text())["thresholds"]
    assert row["threshold"] in [of["threshold"] for of in thresholds]
    assert (row["detector"], row["threshold"] == 0) == ("guard", False)
    card = (out / "README.md").read_text()
    assert "by what a model answers about them in a pass of its own" in card
    assert str(guard_path.parent) not in card


def test_a_fit_scales_a_guard_model_to_labelled_prompts(
    demur: CommandLine, workplace: Workplace, guard_path: Path, tmp_path: Path
) -> None:
    rows = labelled_prompts(320, seed=6)
    data = write_lines(tmp_path / "labelled.jsonl", rows)
    model = ("-p", f"model={guard_path}", "-p", "num_calibrated=20")
    options = (*workplace.model, "--data", data, "--fpr", "0.1", "--out", tmp_path / "fitted")
    outcome = demur("fit", "--detector", "guard-model", *model, *options)
    assert outcome.exit_code == 0, outcome.stderr
    manifest = json.loads((tmp_path / "fitted" / "demur.json").read_text())
    assert manifest["hyper_parameters"]["format"] == "llama_guard"
    (row,) = checked(demur, workplace, tmp_path / "fitted")
    state = load_file(tmp_path / "fitted" / "model.safetensors")
    expected = float(state["slope"][0]) * expected_score() + float(state["bias"][0])
    assert row["score"] == pytest.approx(expected, abs=1e-3)


def test_states_can_be_captured_inside_of_a_question(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"text": "Hi"}])
    common = ("capture", "--input", prompts, *workplace.model, "--out", tmp_path / "states")
    plain, wrapped, again = (
        demur(*common, *wrapper)
        for wrapper in ((), ("--wrapper", "prompted:6"), ("--wrapper", "prompted:6"))
    )
    assert (plain.exit_code, wrapped.exit_code) == (0, 0), wrapped.stderr
    assert plain.stdout != wrapped.stdout
    assert again.stdout == wrapped.stdout


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [("nothing", "no template 'nothing'"), ("wildguard", "is no question to a chat model")],
)
def test_a_wrapper_has_to_be_a_question(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, wrapper: str, message: str
) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"text": "Hi"}])
    options = (*workplace.model, "--wrapper", wrapper, "--out", tmp_path / "states")
    assert_one_line(demur("capture", "--input", prompts, *options), message)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("guard_model:/nowhere/wildguard", "there is no model '/nowhere/wildguard'"),
        ("guard_model:/nowhere/mine", "cannot be told from its name: give format"),
        ("guard_model:/nowhere/mine,format=other", "format is 'other': expected one of"),
        ("prompted:10", "wrapper is 10: expected 0 to 9"),
        ("mlp", "has to be fitted first"),
        ("cascade", "'linear', has to be fitted"),
    ],
)
def test_what_cannot_judge_is_refused_in_a_line(
    demur: CommandLine, workplace: Workplace, detector: str, message: str
) -> None:
    assert_one_line(demur("check", TEXT, *workplace.model, "--detector", detector), message)

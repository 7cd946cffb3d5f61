"""A soft prompt from labelled prompts to replies, as a user makes one."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from demur.datasets import written
from demur.modeling.load import load
from demur.trainers.soft_prompt import SoftPromptTrainer
from tests.model_folder import CommandLine, Workplace, assert_one_line, write_texts

EXAMPLE = Path(__file__).parents[2] / "examples" / "soft_prompt.py"
SMALL = (
    "num_prompts=24",
    "steps=4",
    "batch_size=4",
    "max_tokens=128",
    "num_components=8",
    "text=Be careful.",
)


def small() -> list[str]:
    return [part for value in SMALL for part in ("-p", value)]


def test_a_soft_prompt_is_trained_and_answers_flagged_prompts(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    options = (*workplace.model, "--data", workplace.labelled_path, "--out", out)
    trained = demur("train", "soft-prompt", *options, *small())
    assert trained.exit_code == 0, trained.stderr
    assert "auroc_harmlessness:" in trained.error
    assert f"--responder soft_prompt:{out}" in trained.error

    prompts = write_texts(tmp_path / "prompts.jsonl", ["the MARKER ran", "the river ran"])
    answered = demur(
        "reply", *workplace.guarded, "--input", prompts, "--responder", f"soft_prompt:{out}",
        "--max-tokens", 4, "--json",
    )  # fmt: skip
    assert answered.exit_code == 0, answered.stderr
    assert [row["route"] for row in answered.rows()] == ["soft_prompt", "pass"]
    manifest = json.loads((out / "demur.json").read_text(encoding="utf-8"))
    assert manifest["fields"] == {"text": "Be careful."}
    assert manifest["provenance"]["hyper_parameters"]["steps"] == 4
    assert len(manifest["provenance"]["curve"]) == 4


def test_too_few_prompts_end_in_one_line(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    options = (*workplace.model, "--data", workplace.labelled_path, "--out", tmp_path / "mine")
    outcome = demur("train", "soft-prompt", *options, "-p", "num_prompts=400")
    assert_one_line(outcome, "prompts could be drawn for train: expected 400", "lower num_prompts")
    assert not (tmp_path / "mine").exists()


def test_the_example_runs(
    workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (workplace.model_path, workplace.artifact_path, workplace.labelled_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, paths)])
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("auroc_shift: ") for line in lines)
    assert any(line.startswith("pass ") for line in lines)
    assert any(line.startswith("soft_prompt ") for line in lines)


@pytest.mark.slow
def test_the_default_text_has_at_most_25_tokens() -> None:
    tokenizer = load().tokenizer
    assert len(tokenizer(SoftPromptTrainer().text, add_special_tokens=False)["input_ids"]) <= 25


@pytest.mark.slow
def test_a_soft_prompt_for_the_embedded_model_parts_held_out_prompts_beyond_chance(
    demur: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    trained = demur("train", "soft-prompt", "--data", written.PATH, "--out", out)
    assert trained.exit_code == 0, trained.stderr
    manifest = json.loads((out / "demur.json").read_text(encoding="utf-8"))
    metrics = manifest["provenance"]["metrics"]
    assert metrics["auroc_shift"] > 0.61  # what chance exceeds once in twenty times
    assert metrics["shift_unsafe"] < metrics["shift_safe"]

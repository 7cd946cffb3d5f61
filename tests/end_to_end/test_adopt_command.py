"""`demur adopt` on variants of a tiny model: the same, moved weights, another template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from demur.guard.bounds import num_groups_needed
from tests.model_folder import (
    CommandLine,
    Outcome,
    Workplace,
    assert_one_line,
    labelled_prompts,
    read_lines,
    save_model,
    write_lines,
)
from tests.tiny import CHATML

REFIT = 4
NUM_BENIGN = 100


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    rows = labelled_prompts(2 * NUM_BENIGN, seed=9)[1::2]
    return write_lines(tmp_path / "benign.jsonl", rows)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "labelled.jsonl", labelled_prompts(60, seed=8))


def retrained(source: Path, path: Path, *, noise: float) -> Path:
    """Copy a model and move each weight matrix by a share of its spread."""
    shutil.copytree(source, path)
    model = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                drawn = torch.randn(weights.shape, generator=generator)
                weights.add_(drawn, alpha=noise * float(weights.std()))
    model.save_pretrained(path)
    return path


def adopt(
    demur: CommandLine, workplace: Workplace, model: Path, benign: Path, *options: object
) -> Outcome:
    arguments = ("-d", workplace.artifact_path, "--model", model, "--dtype", "float32")
    return demur("adopt", *arguments, "--benign", benign, *options)


def decision_of(outcome: Outcome) -> dict[str, Any]:
    (found,) = outcome.rows()
    return found


def test_the_same_model_is_accepted_and_nothing_is_written(
    demur: CommandLine, workplace: Workplace, benign: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adopted"
    options = ("--labelled", labelled, "--out", out, "--json")
    outcome = adopt(demur, workplace, workplace.model_path, benign, *options)
    assert outcome.exit_code == 0, outcome.stderr
    found = decision_of(outcome)
    assert (found["decision"], found["score_shift"], found["state_shift"]) == ("accept", 0.0, 0.0)
    assert not out.exists()


def test_the_same_model_on_other_traffic_is_to_be_recalibrated(
    demur: CommandLine, workplace: Workplace, labelled: Path, tmp_path: Path
) -> None:
    marked = [{**row, "label": "safe"} for row in labelled_prompts(2 * NUM_BENIGN, seed=9)[::2]]
    traffic = write_lines(tmp_path / "traffic.jsonl", marked)
    options = ("--labelled", labelled, "--json")
    found = decision_of(adopt(demur, workplace, workplace.model_path, traffic, *options))
    assert found["decision"] == "recalibrate"
    assert found["flag_rate_proven"] > found["fpr"] == 0.05


def test_moved_weights_are_recalibrated_and_the_new_artifact_serves_the_variant(
    demur: CommandLine, workplace: Workplace, benign: Path, labelled: Path, tmp_path: Path
) -> None:
    variant = retrained(workplace.model_path, tmp_path / "variant", noise=0.15)
    out, checked = tmp_path / "adopted", tmp_path / "checked.jsonl"
    on_variant = ("--input", benign, "--model", variant, "--dtype", "float32", "-o", checked)
    refused = demur("check", *on_variant, "--detector", workplace.artifact_path)
    assert_one_line(refused, "scores the fingerprint texts differently on variant")
    options = ("--labelled", labelled, "--reference", workplace.model_path, "--out", out)
    outcome = adopt(demur, workplace, variant, benign, *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "recalibrate"
    assert "for traffic like benign.jsonl" in outcome.error
    assert demur("check", *on_variant, "--detector", out).exit_code == 0
    assert 0 < sum(row["flagged"] for row in read_lines(checked)) <= 0.05 * NUM_BENIGN
    manifest = json.loads((out / "demur.json").read_text())
    assert manifest["model_id"]["name"] == "variant"
    assert manifest["provenance"]["adopted_from"]["name"] == "tiny-llama"
    assert "Fitted on tiny-llama and adopted" in (out / "README.md").read_text()


def test_another_chat_template_is_recalibrated(
    demur: CommandLine, workplace: Workplace, benign: Path, labelled: Path, tmp_path: Path
) -> None:
    template = CHATML.replace("{{ m.role }}\n", "{{ m.role }}: ")
    variant = save_model(tmp_path / "variant", template=template)
    outcome = adopt(demur, workplace, variant, benign, "--labelled", labelled, "--json")
    found = decision_of(outcome)
    assert (found["decision"], found["differences"]) == ("recalibrate", ["chat_template"])
    assert found["score_shift"] is None
    assert "give --out FOLDER" in outcome.error


def test_ranks_that_are_lost_against_the_first_model_call_for_a_refit(
    demur: CommandLine, workplace: Workplace, benign: Path, labelled: Path, tmp_path: Path
) -> None:
    variant = retrained(workplace.model_path, tmp_path / "variant", noise=0.4)
    options = ("--labelled", labelled, "--reference", workplace.model_path, "--json")
    outcome = adopt(demur, workplace, variant, benign, *options)
    assert outcome.exit_code == REFIT
    found = decision_of(outcome)
    assert found["decision"] == "refit"
    assert found["rank_correlation"] < 0.9


def test_other_weights_of_the_same_shapes_call_for_a_refit(
    demur: CommandLine, workplace: Workplace, benign: Path, labelled: Path, tmp_path: Path
) -> None:
    variant, out = save_model(tmp_path / "variant", seed=1), tmp_path / "adopted"
    outcome = adopt(demur, workplace, variant, benign, "--labelled", labelled, "--out", out)
    assert outcome.exit_code == REFIT
    assert outcome.stdout.splitlines()[-1] == "refit"
    assert not out.exists()


def test_another_architecture_is_no_variant(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    outcome = adopt(demur, workplace, save_model(tmp_path / "other", "qwen2"), benign)
    assert_one_line(outcome, "and other has another architecture (blocks, width or vocabulary)")


def test_too_few_benign_prompts_are_told_how_many_it_needs(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    few = write_lines(tmp_path / "few.jsonl", labelled_prompts(80, seed=9)[1::2])
    outcome = adopt(demur, workplace, workplace.model_path, few)
    assert_one_line(outcome, f"needs {num_groups_needed(0.05)} benign groups, got 40")

"""`demur calibrate`: thresholds from prompts of one's own, and what is promised of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.model_folder import (
    CommandLine,
    Fields,
    Outcome,
    Workplace,
    assert_one_line,
    labelled_prompts,
    read_lines,
    write_lines,
)

FPR = ("--fpr", "0.05")


def benign_rows(number: int) -> list[Fields]:
    """Return fresh prompts without the marker, without labels."""
    rows = labelled_prompts(2 * number, seed=9)
    return [{"id": row["id"], "text": row["text"]} for row in rows if row["label"] == "safe"]


def calibrate(demur: CommandLine, workplace: Workplace, data: Path, *options: object) -> Outcome:
    return demur("calibrate", "--data", data, *workplace.guarded, *options)


def thresholds_of(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "thresholds.json").read_text())
    return found


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "benign.jsonl", benign_rows(200))


def test_the_new_artifact_promises_for_traffic_like_the_file(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    outcome = calibrate(demur, workplace, benign, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith("for traffic like benign.jsonl:\n")
    assert "(default): at most 0.05 of benign prompts flagged, with 95% conf" in outcome.stdout
    found = thresholds_of(out)
    assert found["calibrated_on"] == "benign.jsonl (200 prompts in 200 groups)"
    assert [threshold["fpr"] for threshold in found["thresholds"]] == [0.02, 0.05, 0.1]
    card = (out / "README.md").read_text()
    assert "at most 0.05 of benign prompts flagged, with 95% confidence" in card


def test_states_and_weights_stay_as_they_are(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    calibrate(demur, workplace, benign, *FPR, "--out", out)
    for name in ("model.safetensors", "fingerprint.safetensors"):
        before, after = (load_file(folder / name) for folder in (workplace.artifact_path, out))
        assert all(np.array_equal(before[key], after[key]) for key in before)
    before, after = (thresholds_of(folder) for folder in (workplace.artifact_path, out))
    assert (before["slope"], before["intercept"]) == (after["slope"], after["intercept"])


def test_check_flags_no_more_of_the_file_than_was_promised(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    out, checked = tmp_path / "mine", tmp_path / "checked.jsonl"
    calibrate(demur, workplace, benign, *FPR, "--out", out)
    outcome = demur(
        "check", "--input", benign, *workplace.model, "--detector", out, "--output", checked
    )
    assert outcome.exit_code == 0, outcome.stderr
    flagged = np.mean([row["flagged"] for row in read_lines(checked)])
    assert 0 < flagged <= 0.05
    default = next(t for t in thresholds_of(out)["thresholds"] if t["fpr"] == 0.05)
    assert flagged == default["realised_fpr"]


def test_without_a_folder_thresholds_are_shown_and_nothing_is_written(
    demur: CommandLine, workplace: Workplace, benign: Path
) -> None:
    before = (workplace.artifact_path / "thresholds.json").read_bytes()
    outcome = calibrate(demur, workplace, benign, *FPR)
    assert outcome.exit_code == 0
    assert "for traffic like benign.jsonl" in outcome.stdout
    assert "nothing was written" in outcome.error
    assert (workplace.artifact_path / "thresholds.json").read_bytes() == before


def test_in_place_replaces_the_artifact(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "mine", ("--data", benign, *workplace.model)
    calibrate(demur, workplace, benign, *FPR, "--out", out)
    outcome = demur("calibrate", *options, "-d", out, "--fpr", "0.02", "--in-place")
    assert outcome.exit_code == 0, outcome.stderr
    assert thresholds_of(out)["default_fpr"] == 0.02


def test_too_few_prompts_are_told_how_many_it_needs(
    demur: CommandLine, workplace: Workplace, benign: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    outcome = calibrate(demur, workplace, benign, "--fpr", "0.001", "--out", out)
    assert_one_line(outcome, "needs 2995 benign groups, got 200", "any rate from 0.0149 on")
    assert not out.exists()


def test_a_conformal_promise_needs_fewer_prompts(
    demur: CommandLine, workplace: Workplace, benign: Path
) -> None:
    outcome = calibrate(demur, workplace, benign, "--fpr", "0.01", "--guarantee", "conformal")
    assert "(default): at most 0.01 of benign prompts flagged, on average" in outcome.stdout


def test_unlabelled_traffic_states_its_contamination(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = labelled_prompts(300, seed=11)
    traffic = [{"text": row["text"]} for row in [*rows[1::2], *rows[:8:2]]]  # 4 of 154 unsafe
    data, out = write_lines(tmp_path / "traffic.jsonl", traffic), tmp_path / "mine"
    shares = ("--unlabelled", "--contamination", "0.03")
    outcome = calibrate(demur, workplace, data, *FPR, *shares, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert "if at most 0.03 of the traffic was unsafe" in outcome.stdout
    provenance = json.loads((out / "demur.json").read_text())["provenance"]
    assert provenance["calibration"]["promise"]["contamination"] == 0.03
    assert "sources" not in provenance["calibration"]


def test_by_length_the_rate_is_kept_in_each_third(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = [
        {**row, "text": " ".join([str(row["text"])] * (1 + number % 3))}
        for number, row in enumerate(benign_rows(300))
    ]
    data, out = write_lines(tmp_path / "lengths.jsonl", rows), tmp_path / "mine"
    outcome = calibrate(demur, workplace, data, *FPR, "--by-length", "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    (first, middle, last) = thresholds_of(out)["thresholds"][0]["holds_in"]
    assert first.startswith("1 to ")
    assert middle.endswith(" tokens")
    assert last.startswith("over ")


def test_by_length_each_third_needs_prompts_enough(
    demur: CommandLine, workplace: Workplace, benign: Path
) -> None:
    outcome = calibrate(demur, workplace, benign, *FPR, "--by-length")
    assert_one_line(outcome, "needs 80 benign groups of each length, got 66")


def test_prompts_labelled_unsafe_are_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "both.jsonl", labelled_prompts(200))
    outcome = calibrate(demur, workplace, data, *FPR)
    assert_one_line(outcome, "100 prompts are labelled unsafe (the first is 'p0')")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "mine", "--in-place"), "not both"),
        (("--unlabelled",), "--unlabelled and --contamination SHARE belong together"),
        (("--contamination", "0.1"), "--unlabelled and --contamination SHARE belong together"),
        (("--confidence", "1"), "--confidence is 1.0: expected more than 0, less than 1"),
        (("-d", "pretrained", "--in-place"), "'pretrained' is none: give --out FOLDER"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    demur: CommandLine, benign: Path, options: tuple[str, ...], words: str
) -> None:
    assert_one_line(demur("calibrate", "--data", benign, *FPR, *options), words)

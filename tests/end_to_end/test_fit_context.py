"""What `demur fit` and `demur calibrate` do with prompts that the model's context does not hold."""

import json
from pathlib import Path

from tests.model_folder import (
    CommandLine,
    Fields,
    Workplace,
    assert_one_line,
    labelled_prompts,
    write_lines,
)

FPR = ("--fpr", "0.1")
TOO_LONG = 7
"""Of 800 prompts, more than an error names."""


def rows_with_long_ones() -> list[Fields]:
    rows = labelled_prompts(800, seed=5)
    return [
        {**row, "text": "x" * 600} if number < TOO_LONG else row for number, row in enumerate(rows)
    ]


def test_long_prompts_are_named_before_any_is_read(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = rows_with_long_ones()
    data = ("--data", write_lines(tmp_path / "labelled.jsonl", rows))
    outcome = demur("fit", *data, *workplace.model, *FPR, "--out", tmp_path / "out")
    assert outcome.exit_code == 2
    assert_one_line(outcome, f"{TOO_LONG} of 800 prompts are too long for the model")
    assert "reading prompts" not in outcome.stderr
    long = {str(row["id"]) for row in rows if len(str(row["text"])) == 600}
    assert sum(f"'{name}' (619 tokens)" in outcome.stderr for name in long) == 5
    assert "and 2 more" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_long_prompts_are_left_out_where_one_asks_for_it(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    data = ("--data", write_lines(tmp_path / "labelled.jsonl", rows_with_long_ones()))
    out = tmp_path / "out"
    outcome = demur("fit", *data, *workplace.model, *FPR, "--leave-out-long", "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{TOO_LONG} of 800 prompts are too long" in outcome.stderr
    provenance = json.loads((out / "demur.json").read_text())["provenance"]
    assert provenance["train"]["prompts"] + provenance["val"]["prompts"] == 800 - TOO_LONG


def test_a_detector_of_texts_alone_needs_no_context(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    data = ("--data", write_lines(tmp_path / "labelled.jsonl", rows_with_long_ones()))
    out = tmp_path / "out"
    outcome = demur("fit", *data, *workplace.model, *FPR, "-d", "length", "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    provenance = json.loads((out / "demur.json").read_text())["provenance"]
    assert provenance["train"]["prompts"] + provenance["val"]["prompts"] == 800


def test_calibrate_names_long_prompts_and_leaves_them_out_where_one_asks_for_it(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    benign = [row for row in rows_with_long_ones() if row["label"] == "safe"]
    num_long = sum(len(str(row["text"])) == 600 for row in benign)
    assert num_long
    data = ("--data", write_lines(tmp_path / "benign.jsonl", benign))
    given = (*data, "--detector", workplace.artifact_path, *workplace.model, *FPR)
    outcome = demur("calibrate", *given)
    assert outcome.exit_code == 2
    assert_one_line(outcome, f"{num_long} of {len(benign)} prompts are too long")
    outcome = demur("calibrate", *given, "--leave-out-long", "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    thresholds = json.loads((tmp_path / "out" / "thresholds.json").read_text())
    assert f"({len(benign) - num_long} prompts" in thresholds["calibrated_on"]

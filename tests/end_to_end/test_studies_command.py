"""`demur study` and `demur reproduce` on a tiny model."""

import json
from pathlib import Path

import pytest

from tests.collection import rows, write_collection
from tests.model_folder import CommandLine, Workplace, assert_one_line

LIMITED = ("--limit", "24", "--seeds", "1")


def test_a_study_writes_its_table_its_numbers_and_its_pictures(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "layers"
    options = (*workplace.model, *LIMITED, "-p", 'methods=["prototypes"]')
    outcome = demur("study", "layers", "--data", workplace.labelled_path, *options, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith("Layers: ")
    content = json.loads((out / "results.json").read_text())
    assert len(content["rows"]) == 4
    assert content["about"]["parameters"]["methods"] == ["prototypes"]
    assert {path.name for path in out.iterdir()} >= {"table.md", "test_auroc.png"}


def test_results_hold_no_text_of_a_prompt(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    options = (*workplace.model, *LIMITED, "-p", 'methods=["prototypes"]')
    demur("study", "layers", "--data", workplace.labelled_path, *options, "--out", tmp_path)
    assert "MARKER" not in (tmp_path / "results.json").read_text()


def test_a_study_of_a_fitted_detector_uses_its_own_threshold(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    few = ("budgets=[2]", "num_prompts=1", "rivals=[]", "partners=[]", "suffix_steps=1")
    options = [option for parameter in few for option in ("-p", parameter)]
    where = ("--data", workplace.labelled_path, "--limit", "8", "--out", tmp_path)
    outcome = demur("study", "attacks", *workplace.guarded, *options, *where)
    assert outcome.exit_code == 0, outcome.stderr
    thresholds = json.loads((workplace.artifact_path / "thresholds.json").read_text())["thresholds"]
    (judge,) = json.loads((tmp_path / "results.json").read_text())["about"]["detectors"]
    assert judge == ["marker", thresholds[0]["threshold"]]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("layers", "--detector", "pretrained"), "study 'layers' fits detectors itself"),
        (("colours",), "there is no study 'colours': expected one of"),
        (("layers", "-p", "depth=3"), "expected NAME=VALUE with a name of"),
        (("layers", "-p", "methods=linear"), "methods is 'linear': expected a list"),
    ],
)
def test_what_no_study_takes_is_refused_before_a_model_is_loaded(
    demur: CommandLine, tmp_path: Path, arguments: tuple[str, ...], part: str
) -> None:
    model = ("--model", tmp_path / "none")
    outcome = demur("study", *arguments, "--data", "starter", *model, "--out", tmp_path)
    assert_one_line(outcome, part)


def test_a_reproduction_names_what_is_missing_and_holds_both_smaller_studies(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    both = [*rows("a", 30, "unsafe"), *rows("b", 30, "safe")]
    val, later = ([{**row, "id": f"{part}-{row['id']}"} for row in both] for part in ("v", "t"))
    data = write_collection(
        tmp_path / "data",
        {
            "pool": {"train": both, "val": val, "test_id": later},
            "harmbench": {"test_ood": rows("harmbench", 5, "unsafe")},
        },
    )
    out = tmp_path / "out"
    outcome = demur("reproduce", "lpm", "--data", data, *workplace.model, *LIMITED, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert "missing: Aegis" in outcome.stderr
    assert "Missing: Aegis (not at hand)" in outcome.stdout
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"layers", "sample_size"}


def test_an_unknown_paper_is_refused(demur: CommandLine, tmp_path: Path) -> None:
    outcome = demur("reproduce", "gda", "--data", "starter", "--out", tmp_path)
    assert_one_line(outcome, "there is no paper 'gda'")

"""What `demur fit` reads of its data, and what the artifact says of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from demur.guard.bounds import num_groups_needed
from tests.model_folder import (
    MARKER,
    CommandLine,
    Fields,
    Workplace,
    assert_one_line,
    labelled_prompts,
    on_model,
    save_model,
    write_lines,
)

OVER_THE_CONTEXT = "x" * 600
FPR = ("--fpr", "0.1")


def manifest_of(artifact: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((artifact / "demur.json").read_text())
    return manifest


def counts_of(artifact: Path, part: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = manifest_of(artifact)["provenance"][part]["sources"]
    return counts


def labelled_path(folder: Path, rows: Sequence[Fields]) -> Path:
    """Write prompts whose source tells the split that they stand in."""
    return write_lines(folder / "labelled.jsonl", rows)


def splits_path(folder: Path, rows: Sequence[Fields]) -> Path:
    """Write a split file that puts each prompt where its source says."""
    keys = ("small", "optional")
    return write_lines(
        folder / "splits.jsonl.gz",
        [
            {"id": row["id"], "file": "labelled.jsonl", "split": row["source"]}
            | {key: row[key] for key in keys if key in row}
            for row in rows
        ],
    )


def split_rows() -> list[dict[str, object]]:
    """Return 40 prompts of train, 80 of val and 20 of test, every second one unsafe."""
    sources = ["train"] * 40 + ["val"] * 80 + ["test"] * 20
    rows = labelled_prompts(len(sources), seed=3)
    return [{**row, "source": source} for row, source in zip(rows, sources, strict=True)]


def test_fit_makes_an_artifact_that_says_what_it_was_made_from(workplace: Workplace) -> None:
    names = ["README.md", "demur.json", "fingerprint.safetensors", "model.safetensors"]
    found = sorted(path.name for path in workplace.artifact_path.iterdir())
    assert found == [*names, "thresholds.json"]
    manifest = manifest_of(workplace.artifact_path)
    assert (manifest["kind"], manifest["method"]) == ("detector", "linear")
    assert manifest["model_id"]["name"] == "tiny-llama"
    assert manifest["provenance"]["metrics"]["val_auroc"] > 0.95


def test_no_prompt_stands_in_the_artifact(workplace: Workplace) -> None:
    content = b"".join(path.read_bytes() for path in workplace.artifact_path.iterdir())
    assert MARKER.encode() not in content


def test_without_splits_a_fifth_of_each_label_is_held_out(workplace: Workplace) -> None:
    train, val = (counts_of(workplace.artifact_path, part) for part in ("train", "val"))
    assert train == {"labelled": {"unsafe": 256, "safe": 256}}
    assert val == {"labelled": {"unsafe": 64, "safe": 64}}


def test_all_supported_rates_are_calibrated_and_the_asked_one_is_the_default(
    workplace: Workplace,
) -> None:
    calibration = json.loads((workplace.artifact_path / "thresholds.json").read_text())
    assert [threshold["fpr"] for threshold in calibration["thresholds"]] == [0.05, 0.1]
    assert calibration["default_fpr"] == 0.05


def test_held_out_groups_are_whole(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = labelled_prompts(600, seed=4)
    # Two prompts a group, one of each label; the group's name is the source that is counted.
    grouped = [
        {**row, "group": f"g{number // 2}", "source": f"g{number // 2}"}
        for number, row in enumerate(rows)
    ]
    out = tmp_path / "out"
    data = labelled_path(tmp_path, grouped)
    outcome = demur("fit", "--data", data, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    train, val = (counts_of(out, part) for part in ("train", "val"))
    assert (len(train), len(val)) == (240, 60)
    assert not set(train) & set(val)


def test_with_splits_only_train_and_val_are_read(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = split_rows()
    rows[-1]["text"] = OVER_THE_CONTEXT
    out = tmp_path / "out"
    splits = ("--splits", splits_path(tmp_path, rows))
    data = labelled_path(tmp_path, rows)
    outcome = demur("fit", "--data", data, *splits, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert counts_of(out, "train") == {"train": {"unsafe": 20, "safe": 20}}
    assert counts_of(out, "val") == {"val": {"unsafe": 40, "safe": 40}}


def test_rows_of_other_splits_do_not_change_the_detector(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        rows = split_rows()
        if folder.name == "b":
            rows[-20:] = [{**row, "label": "safe", "text": "other"} for row in rows[-20:]]
        data = labelled_path(folder, rows)
        splits = ("--splits", splits_path(folder, rows))
        out = folder / "out"
        fit = demur("fit", "--data", data, *splits, *workplace.model, *FPR, "--out", out)
        assert fit.exit_code == 0, fit.stderr
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]


def test_a_row_of_another_split_without_text_does_not_stop_a_fit(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = split_rows()
    rows[-1]["text"] = ""
    splits = ("--splits", splits_path(tmp_path, rows), "--out", tmp_path / "out")
    outcome = demur("fit", "--data", labelled_path(tmp_path, rows), *splits, *workplace.model, *FPR)
    assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize(
    ("options", "num_train"),
    [((), 30), (("--small",), 20), (("--optional",), 40), (("--small", "--optional"), 30)],
)
def test_small_and_optional_choose_rows(
    demur: CommandLine,
    workplace: Workplace,
    tmp_path: Path,
    options: tuple[str, ...],
    num_train: int,
) -> None:
    rows = split_rows()
    # Of the 40 rows of train, 10 are optional, and 10 others are not small.
    for number, row in enumerate(rows):
        row |= {"optional": number < 10, "small": not 10 <= number < 20}
    splits = ("--splits", splits_path(tmp_path, rows), *options, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", labelled_path(tmp_path, rows), *splits, *workplace.model, *FPR)
    assert outcome.exit_code == 0, outcome.stderr
    assert sum(counts_of(tmp_path / "out", "train")["train"].values()) == num_train


def test_small_without_splits_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    options = ("--small", *workplace.model, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert outcome.exit_code == 2
    assert "--small and --optional need --splits" in outcome.error


def test_the_named_method_and_layers_are_fitted(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--detector", "prototypes", "--layers", "0,-1", *FPR, "--out", out)
    outcome = demur("fit", "--data", workplace.labelled_path, *workplace.model, *options)
    assert outcome.exit_code == 0, outcome.stderr
    manifest = manifest_of(out)
    assert manifest["method"] == "prototypes"
    assert [read["layers"] for read in manifest["hyper_parameters"]["reads"]] == [[0, -1]]
    assert demur("check", "Hi", *workplace.model, "--detector", out).exit_code == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("9", "layer 9 does not exist: the model has blocks 0 to 3"),
        ("first", "--layers is 'first': expected numbers such as 9,13,17"),
        ("1,1", "a read names a layer twice: (1, 1)"),
    ],
)
def test_layers_that_do_not_exist_are_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, layers: str, message: str
) -> None:
    options = (*workplace.model, *FPR, "--layers", layers, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert not (tmp_path / "out").exists()


def test_a_rate_with_too_few_groups_is_refused_before_a_model_is_loaded(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    options = ("--model", tmp_path / "no-model", "--fpr", "0.01", "--out", tmp_path / "out")
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert outcome.exit_code == 2
    assert f"needs {num_groups_needed(0.01)} benign validation groups, got 64" in outcome.error
    assert "or ask for one of 0.05, 0.1" in outcome.error


def test_with_hardly_any_groups_no_other_rate_is_offered(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    rows = workplace.labelled_path.read_text().splitlines()
    few.write_text("\n".join(rows[:4] + rows[-4:]))
    options = ("--model", tmp_path / "no-model", "--fpr", "0.1", "--out", tmp_path / "out")
    outcome = demur("fit", "--data", few, *options)
    assert outcome.exit_code == 2
    assert outcome.error.strip().endswith("add benign prompts")


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "1.5", "nan"])
def test_a_rate_that_is_none_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, rate: str
) -> None:
    options = (*workplace.model, "--fpr", rate, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert outcome.exit_code == 2
    assert f"the false-positive rate is {float(rate)}: expected more than 0" in outcome.error


def test_prompts_without_labels_are_refused_as_such(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = [{"text": str(number)} for number in range(400)]
    options = (*workplace.model, *FPR, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", labelled_path(tmp_path, rows), *options)
    assert outcome.exit_code == 2
    assert "400 prompts have no label" in outcome.error


def test_a_row_with_nothing_to_score_is_refused_with_its_line(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = labelled_prompts(300)
    rows[6]["text"] = " "
    options = (*workplace.model, *FPR, "--out", tmp_path / "out")
    outcome = demur("fit", "--data", labelled_path(tmp_path, rows), *options)
    assert outcome.exit_code == 2
    assert "labelled.jsonl, line 7: the prompt is empty" in outcome.error


def test_the_same_data_make_the_same_artifact(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    options = (*workplace.model, "--fpr", "0.05", "--out", tmp_path / "again")
    assert demur("fit", "--data", workplace.labelled_path, *options).exit_code == 0
    for path in workplace.artifact_path.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_folder_that_is_no_artifact_is_refused_before_a_model_or_a_prompt_is_read(
    demur: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    options = ("--model", tmp_path / "no-model", "--out", tmp_path)
    outcome = demur("fit", "--data", tmp_path / "no-prompts.jsonl", *options)
    assert outcome.exit_code == 2
    assert "exists and is no artifact: name a new or empty folder" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_weights_under_the_same_name_are_captured_anew(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "elsewhere" / workplace.model_path.name, "llama", seed=1)
    options = (*on_model(model), "--fpr", "0.05", "--out", tmp_path / "out")
    assert demur("fit", "--data", workplace.labelled_path, *options).exit_code == 0
    fitted = [p / "model.safetensors" for p in (tmp_path / "out", workplace.artifact_path)]
    assert fitted[0].read_bytes() != fitted[1].read_bytes()


def test_a_parameter_of_the_method_is_taken_over(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    arguments = ("fit", "--data", workplace.labelled_path, *workplace.model, *FPR)
    out = tmp_path / "out"
    outcome = demur(*arguments, "-p", "c=0.25", "-p", "balance=labels", "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    found = manifest_of(out)["hyper_parameters"]
    assert (found["c"], found["balance"]) == (0.25, "labels")


@pytest.mark.parametrize(
    ("parameter", "part"),
    [("c", "NAME=VALUE"), ("width=3", "balance"), ("c=-1", "c is -1"), ("c=wide", "c=wide")],
)
def test_a_parameter_that_the_method_does_not_take_is_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, parameter: str, part: str
) -> None:
    arguments = ("fit", "--data", workplace.labelled_path, *workplace.model, *FPR)
    outcome = demur(*arguments, "-p", parameter, "--out", tmp_path / "out")
    assert_one_line(outcome, part)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("layer_vote", ()),
        ("layered_prototypes", ()),
        ("mlp", ()),
        ("nearest_neighbours", ()),
        ("token_transformer", ("-p", "d_hidden=16")),
        ("tfidf", ()),
    ],
)
def test_every_sort_of_detector_is_fitted_and_checks_prompts(
    demur: CommandLine,
    workplace: Workplace,
    tmp_path: Path,
    method: str,
    parameters: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    data = ("--data", workplace.labelled_path, "--detector", method, *parameters)
    outcome = demur("fit", *data, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert manifest_of(out)["provenance"]["metrics"]["val_auroc"] > 0.9
    texts = [f"the {MARKER} heron stood past a mill", "the old heron stood past a mill"]
    verdicts = []
    for text in texts:
        checked = demur("check", text, *workplace.model, "--detector", out, "--json")
        assert checked.exit_code == 0, checked.stderr
        verdicts.append(checked.rows()[0])
    assert verdicts[0]["score"] > verdicts[1]["score"]


def test_kept_moments_lie_in_the_artifact(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    data = ("--data", workplace.labelled_path, "--detector", "prototypes", "-p", "keep=sources")
    outcome = demur("fit", *data, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert (out / "moments" / "moments.safetensors").is_file()


def test_category_heads_are_fitted_and_shown_by_check(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = [
        {
            **row,
            "source": "openai_moderation",
            "category": "V" if row["label"] == "unsafe" else None,
        }
        for row in labelled_prompts(640, seed=2)
    ]
    out = tmp_path / "out"
    data = ("--data", labelled_path(tmp_path, rows), "--categories")
    outcome = demur("fit", *data, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert "self-harm: unsupported, 0 prompts" in outcome.stderr
    checked = demur("check", f"the {MARKER} heron", *workplace.model, "-d", out, "--json").rows()[0]
    assert checked["categories"]["violence"] > 0.5
    assert checked["categories"]["self-harm"] is None


def test_categories_need_a_detector_of_states(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    data = ("--data", workplace.labelled_path, "--detector", "token_transformer", "--categories")
    outcome = demur("fit", *data, *workplace.model, *FPR, "--out", tmp_path / "out")
    assert_one_line(outcome, "--categories")

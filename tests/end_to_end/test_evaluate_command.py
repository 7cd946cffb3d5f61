"""`demur evaluate` on tiny models: what it writes, how it goes on, and what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from demur.core.protocols import Stream
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt
from demur.modeling.fast_capture import FastCapture
from demur.workflows.capture import Capturer
from tests.collection import rows, write_collection
from tests.model_folder import (
    MARKER,
    CommandLine,
    Outcome,
    Workplace,
    assert_one_line,
    labelled_prompts,
    on_model,
    read_lines,
    save_model,
    write_lines,
)

QUICK = ("--draws", "20")
INTERRUPTED = 130
OVER_THE_CONTEXT = "x" * 600


@pytest.fixture
def suite_path(tmp_path: Path) -> Path:
    """Write two sets, of which one holds safe prompts only."""
    folder = tmp_path / "suite"
    folder.mkdir()
    write_lines(folder / "mixed.jsonl", labelled_prompts(40, seed=5))
    safe = [row for row in labelled_prompts(30, seed=6) if row["label"] == "safe"]
    write_lines(folder / "plain.jsonl", safe)
    return folder


@pytest.fixture(scope="module")
def second_path(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("second") / "prototypes"


@pytest.fixture
def second(demur: CommandLine, workplace: Workplace, second_path: Path) -> Path:
    """Fit another detector on the same model, once."""
    if not second_path.exists():
        fit(demur, workplace, workplace.model, second_path)
    return second_path


def fit(demur: CommandLine, workplace: Workplace, model: Sequence[str], out: Path) -> None:
    options = (*model, "-d", "prototypes", "--fpr", "0.05", "--out", out)
    outcome = demur("fit", "--data", workplace.labelled_path, *options)
    assert outcome.exit_code == 0, outcome.stderr


def results_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_two_detectors_stand_side_by_side(
    demur: CommandLine, workplace: Workplace, suite_path: Path, second: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = (*workplace.guarded, "-d", second, *QUICK, "--no-report")
    outcome = demur("evaluate", "--suite", suite_path, *options, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    assert {path.name for path in out.iterdir()} == {"results.json", "records.jsonl"}
    scorers = results_of(out)["scorers"]
    assert [of["label"] for of in scorers] == [
        "marker", "prototypes", "length", "always_flag", "shuffled_labels",
    ]  # fmt: skip
    assert [of["name"] for of in scorers[0]["sets"]] == ["mixed", "plain"]
    for name in ("marker", "prototypes", "length"):
        assert name in outcome.stdout


def test_results_follow_from_the_records_and_those_from_check(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    demur(
        "evaluate", "--suite", suite_path, *workplace.guarded, *QUICK, "--no-report", "--out", out
    )
    records = read_lines(out / "records.jsonl")
    mixed = [record for record in records if record["set"] == "mixed"]
    checked = demur(
        "check", "--input", suite_path / "mixed.jsonl", *workplace.guarded, "--json"
    ).rows()
    scores = [row["score"] for row in checked]
    assert [record["id"] for record in mixed] == [row["id"] for row in checked]
    assert [record["score"] for record in mixed] == pytest.approx(scores, abs=1e-4)
    assert [record["flagged"] for record in mixed] == [row["flagged"] for row in checked]
    unsafe = [record["label"] == "unsafe" for record in mixed]
    found = results_of(out)["scorers"][0]["sets"][0]
    assert found["auroc"]["value"] == pytest.approx(
        roc_auc_score(unsafe, [record["score"] for record in mixed])
    )
    recall = np.mean([record["flagged"] for record in mixed if record["label"] == "unsafe"])
    assert found["at_thresholds"][0]["recall"]["value"] == recall


def test_each_of_two_models_has_the_detectors_that_fit_it(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    model = on_model(save_model(tmp_path / "tiny-qwen3", "qwen3"))
    fit(demur, workplace, model, tmp_path / "other")
    out = tmp_path / "out"
    options = (*workplace.guarded, "--model", model[1], "-d", tmp_path / "other", *QUICK)
    outcome = demur("evaluate", "--suite", suite_path, *options, "--no-report", "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    content = results_of(out)
    assert [of["name"] for of in content["models"]] == ["tiny-llama", "tiny-qwen3"]
    assert [of["label"] for of in content["scorers"]][:2] == [
        "marker on tiny-llama",
        "other on tiny-qwen3",
    ]
    records = read_lines(out / "records.jsonl")
    assert {(of["model"], of["detector"]) for of in records} == {
        ("tiny-llama", "marker"),
        ("tiny-qwen3", "other"),
    }


def test_the_report_is_written_beside_the_results(
    demur: CommandLine,
    workplace: Workplace,
    suite_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("demur.workflows.report_charts.script", lambda: "drawn()")
    out = tmp_path / "out"
    outcome = demur("evaluate", "--suite", suite_path, *workplace.guarded, *QUICK, "--out", out)
    assert "report.html" in outcome.error
    page = (out / "report.html").read_text()
    assert "Evaluation on suite" in page
    assert MARKER not in page


def test_json_is_all_that_stands_on_standard_output(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    options = (*workplace.guarded, *QUICK, "--no-report", "--json", "--out", tmp_path / "out")
    outcome = demur("evaluate", "--suite", suite_path, *options)
    assert json.loads(outcome.stdout) == results_of(tmp_path / "out")


def test_an_interrupted_run_writes_nothing_and_goes_on_after_what_it_read(
    demur: CommandLine,
    workplace: Workplace,
    suite_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    num_read = count_reads(monkeypatch)

    def run() -> Outcome:
        options = (*workplace.guarded, *QUICK, "--no-report", "--out", out)
        return demur("evaluate", "--suite", suite_path, *options)

    with monkeypatch.context() as patch:
        interrupt_at_second_set(patch)
        assert run().exit_code == INTERRUPTED
    assert not out.exists()
    assert num_read == [40]
    assert run().exit_code == 0
    assert num_read == [40, 15]
    whole = (out / "records.jsonl").read_bytes()
    assert run().exit_code == 0
    assert num_read == [40, 15]
    assert (out / "records.jsonl").read_bytes() == whole


def count_reads(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that takes up how many prompts each capture reads with the model."""
    counts: list[int] = []
    read = FastCapture.read

    def counted(self: FastCapture, prompts: Sequence[Prompt]) -> Stream:
        counts.append(len(prompts))
        return read(self, prompts)

    patch.setattr(FastCapture, "read", counted)
    return counts


def interrupt_at_second_set(patch: pytest.MonkeyPatch) -> None:
    parts, calls = Capturer.parts, []

    def interrupted(
        self: Capturer, chats: Sequence[Chat], reads: Sequence[CaptureSpec], **more: Any
    ) -> Stream:
        calls.append(chats)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return parts(self, chats, reads, **more)

    patch.setattr(Capturer, "parts", interrupted)


def test_prompts_over_the_context_are_left_out_and_counted(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    long = {"id": "long", "text": OVER_THE_CONTEXT, "label": "safe"}
    write_lines(suite_path / "long.jsonl", [long, *rows("short", 3, "safe")])
    options = (*workplace.guarded, *QUICK, "--no-report", "--out", tmp_path / "out")
    outcome = demur("evaluate", "--suite", suite_path, *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert results_of(tmp_path / "out")["num_left_out"] == 1
    ids = {record["id"] for record in read_lines(tmp_path / "out" / "records.jsonl")}
    assert "long" not in ids
    assert "short-0" in ids


def test_one_label_is_said_and_measured(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    options = (*workplace.guarded, *QUICK, "--no-report", "--out", tmp_path / "out")
    outcome = demur("evaluate", "--suite", suite_path / "plain.jsonl", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert "all prompts of plain.jsonl are safe: there is no AUROC" in outcome.error
    scorer = results_of(tmp_path / "out")["scorers"][0]
    assert [of["measure"] for of in scorer["averages"]] == ["flagged_safe"]


def test_a_part_of_the_collection_is_found_by_its_name(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_collection(
        tmp_path / "data",
        {
            "harmbench": {"test_ood": rows("harmbench", 5, "unsafe")},
            "alpaca_eval": {"utility": rows("alpaca_eval", 6, "safe")},
        },
    )
    monkeypatch.setenv("DEMUR_DATA", str(data))
    options = (*workplace.guarded, *QUICK, "--no-report", "--out", tmp_path / "out")
    outcome = demur("evaluate", "--suite", "harmful", *options)
    assert outcome.exit_code == 0, outcome.stderr
    harmbench, _ = results_of(tmp_path / "out")["scorers"][0]["sets"]
    assert (harmbench["num_unsafe"], harmbench["num_pool"]) == (5, 6)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--suite", "nowhere"), "there is no suite 'nowhere': expected"),
        (("--suite", "starter", "-d", "nowhere"), "there is no detector 'nowhere'"),
    ],
)
def test_what_is_not_there_is_refused(
    demur: CommandLine,
    workplace: Workplace,
    tmp_path: Path,
    options: tuple[str, ...],
    part: str,
) -> None:
    out = tmp_path / "out"
    outcome = demur("evaluate", *options, *workplace.model, "--no-report", "--out", out)
    assert_one_line(outcome, part)
    assert not out.exists()


def test_a_detector_of_another_model_is_refused(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    model = on_model(save_model(tmp_path / "tiny-qwen3", "qwen3"))
    options = (*model, "-d", workplace.artifact_path, "--no-report", "--out", tmp_path / "out")
    outcome = demur("evaluate", "--suite", suite_path, *options)
    assert_one_line(outcome, "marker", "tiny-llama", "tiny-qwen3")


def test_models_and_detectors_that_share_a_name_are_refused(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    options = (*workplace.guarded, *QUICK, "--no-report", "--out", tmp_path / "out")
    again = demur("evaluate", "--suite", suite_path, *options, "-d", workplace.artifact_path)
    assert_one_line(again, "two detectors have the same name")
    again = demur("evaluate", "--suite", suite_path, *options, "-m", workplace.model_path)
    assert_one_line(again, "two models are called 'tiny-llama'")


def test_an_output_that_is_a_file_is_refused_before_any_work(
    demur: CommandLine, suite_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    model = ("--model", tmp_path / "none")
    outcome = demur("evaluate", "--suite", suite_path, *model, "--no-report", "--out", out)
    assert_one_line(outcome, "is a file: name a folder")
    assert out.read_text() == "mine"


def test_a_report_without_its_packages_is_refused_before_any_work(
    demur: CommandLine, suite_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.cli.evaluate.find_spec", lambda name: None)
    model = ("--model", tmp_path / "none")
    outcome = demur("evaluate", "--suite", suite_path, *model, "--out", tmp_path / "out")
    assert_one_line(outcome, "pip install 'demur[report]'", "--no-report")

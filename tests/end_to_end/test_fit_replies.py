"""`demur fit --watches reply`: from labelled replies, and the model's own, to a detector."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from demur.cli.main import run
from demur.core import artifacts
from demur.core.errors import ConfigError
from demur.engines.transformers import TransformersEngine
from demur.guard.loading import load_detector
from tests.conftest import on_one_thread
from tests.model_folder import (
    MARKER,
    WORDS,
    CommandLine,
    Fields,
    Workplace,
    assert_one_line,
    on_model,
    write_lines,
)

REPLY = ("--watches", "reply")
FPR = ("--fpr", "0.1")


def labelled_replies(number: int = 320, *, seed: int = 0) -> list[dict[str, object]]:
    """Return prompts that say nothing with replies, of which every second holds the marker."""
    generator = random.Random(seed)
    rows: list[dict[str, object]] = []
    for row in range(number):
        words = [generator.choice(WORDS) for _ in range(4)]
        if row % 2:
            words[2] = MARKER
        rows.append(
            {
                "id": f"r{row}",
                "text": f"question {row}",
                "label": "unsafe",
                "response": " ".join(words),
                "response_label": "unsafe" if row % 2 else "safe",
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Fields]:
    return list(labelled_replies())


def replies_path(folder: Path, rows: Sequence[Fields]) -> Path:
    return write_lines(folder / "replies.jsonl", rows)


def manifest_of(artifact: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((artifact / "demur.json").read_text())
    return manifest


@pytest.fixture(scope="module")
def artifact(
    workplace: Workplace, tmp_path_factory: pytest.TempPathFactory, rows: list[Fields]
) -> Path:
    """Fit a detector once through the command line."""
    folder = tmp_path_factory.mktemp("replies")
    data, out = str(replies_path(folder, rows)), folder / "monitor"
    with pytest.MonkeyPatch.context() as patch, on_one_thread():
        patch.setenv("DEMUR_CACHE", str(workplace.cache_path))
        with pytest.raises(SystemExit) as end:
            run(["fit", "--data", data, *REPLY, *workplace.model, *FPR, "--out", str(out)])
    assert not end.value.code
    return out


def test_a_detector_of_replies_is_fitted_calibrated_and_saved(artifact: Path) -> None:
    manifest = manifest_of(artifact)
    assert manifest["hyper_parameters"]["watches"] == "reply"
    (read,) = manifest["hyper_parameters"]["reads"]
    assert (read["positions"], read["pool"]) == ("reply", "mean")
    assert manifest["provenance"]["metrics"]["val_auroc"] > 0.9
    assert manifest["provenance"]["val"]["sources"] == {"replies": {"unsafe": 32, "safe": 32}}


def test_the_card_speaks_of_replies(artifact: Path) -> None:
    card = " ".join((artifact / "README.md").read_text().split())
    assert "Scores replies while they are decoded" in card
    assert "64 held-out replies of replies.jsonl, each by the highest score that it has" in card
    assert "of benign replies flagged" in card


def test_no_reply_stands_in_the_artifact(artifact: Path) -> None:
    content = b"".join(path.read_bytes() for path in artifact.iterdir())
    assert MARKER.encode() not in content


def test_it_loads_for_replies_and_not_for_prompts(artifact: Path, workplace: Workplace) -> None:
    engine = TransformersEngine.load(workplace.model_path, dtype="float32")
    loaded = load_detector(artifact, engine, watches="reply")
    assert loaded.detector.watches == "reply"
    with pytest.raises(ConfigError, match="watches replies: it cannot judge prompts"):
        load_detector(artifact, engine)
    with pytest.raises(ConfigError, match="watches prompts: it cannot judge replies"):
        load_detector(workplace.artifact_path, engine, watches="reply")


def test_a_prompt_is_not_checked_by_a_detector_of_replies(
    demur: CommandLine, workplace: Workplace, artifact: Path
) -> None:
    outcome = demur("check", "hello", *workplace.model, "--detector", artifact)
    assert_one_line(outcome, "watches replies", "--watches prompt")


def test_the_models_own_replies_count_as_safe(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, rows: list[Fields]
) -> None:
    benign = write_lines(tmp_path / "benign.jsonl", [{"text": f"river {n}"} for n in range(40)])
    out = tmp_path / "monitor"
    own = ("--own-replies", benign, "--own-tokens", 3)
    data = replies_path(tmp_path, rows)
    outcome = demur("fit", "--data", data, *REPLY, *own, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    found = artifacts.read(out)
    own_counts = [found.provenance[part]["sources"]["benign"] for part in ("train", "val")]
    assert [counts["unsafe"] for counts in own_counts] == [0, 0]
    left_out = re.search(r"(\d+) own replies are empty", outcome.error)
    num_own = sum(counts["safe"] for counts in own_counts)
    assert num_own == 40 - (int(left_out[1]) if left_out else 0)
    assert "the model's own to benign.jsonl, of up to 3 tokens" in found.calibration.calibrated_on


def test_replies_of_the_replies_split_are_parted_and_others_left_out(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, rows: list[Fields]
) -> None:
    places = [
        {
            "id": row["id"],
            "file": "replies.jsonl",
            "split": "responses_train" if n < 300 else "test",
        }
        for n, row in enumerate(rows)
    ]
    splits = ("--splits", write_lines(tmp_path / "splits.jsonl", places))
    out = tmp_path / "monitor"
    data = replies_path(tmp_path, rows)
    outcome = demur("fit", "--data", data, *REPLY, *splits, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    provenance = manifest_of(out)["provenance"]
    assert (provenance["train"]["prompts"], provenance["val"]["prompts"]) == (240, 60)


def test_rows_without_a_labelled_reply_are_counted(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, rows: list[Fields]
) -> None:
    more = [*rows, {"id": "x", "text": "no reply", "label": "safe"}]
    out = ("--out", tmp_path / "monitor")
    data = replies_path(tmp_path, more)
    outcome = demur("fit", "--data", data, *REPLY, *workplace.model, *FPR, *out)
    assert outcome.exit_code == 0, outcome.stderr
    assert "1 of 321 rows have no labelled reply: left out" in outcome.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*REPLY, "-d", "mlp"), "detector 'mlp' cannot watch replies"),
        (("--watches", "answer"), "--watches is 'answer': expected one of"),
        (("--own-replies", "{folder}/replies.jsonl"), "--own-replies needs --watches reply"),
        ((*REPLY, "--categories"), "it needs --watches prompt"),
        (
            (*REPLY, "--own-replies", "{folder}/replies.jsonl"),
            "the model's own replies count as safe, so give benign prompts only",
        ),
    ],
    ids=["method", "watches", "own replies", "categories", "unsafe prompts"],
)
def test_what_does_not_fit_together_is_refused(
    demur: CommandLine, tmp_path: Path, rows: list[Fields], options: Sequence[str], message: str
) -> None:
    data = replies_path(tmp_path, rows)
    given = [option.format(folder=tmp_path) for option in options]
    absent = ("--model", tmp_path / "absent")
    out = ("--out", tmp_path / "monitor")
    assert_one_line(demur("fit", "--data", data, *given, *absent, *FPR, *out), message)


def test_data_without_replies_are_refused(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "monitor")
    data = workplace.labelled_path
    outcome = demur("fit", "--data", data, *REPLY, *workplace.model, *FPR, *out)
    assert_one_line(outcome, "none of the 640 rows has a labelled reply", "response_label")


def test_an_empty_reply_is_refused_before_any_work(
    demur: CommandLine, tmp_path: Path, rows: list[Fields]
) -> None:
    data = replies_path(tmp_path, [{**rows[0], "response": " "}, *rows[1:]])
    out = ("--out", tmp_path / "monitor")
    outcome = demur("fit", "--data", data, *REPLY, *on_model(tmp_path / "absent"), *FPR, *out)
    assert_one_line(outcome, "1 labelled replies are empty", "'r0'")


def test_a_detector_of_single_tokens_watches_replies_too(
    demur: CommandLine, workplace: Workplace, tmp_path: Path, rows: list[Fields]
) -> None:
    out = tmp_path / "monitor"
    how = (*REPLY, "-d", "token_linear", "-p", "running=ema")
    data = replies_path(tmp_path, rows)
    outcome = demur("fit", "--data", data, *how, *workplace.model, *FPR, "--out", out)
    assert outcome.exit_code == 0, outcome.stderr
    (read,) = manifest_of(out)["hyper_parameters"]["reads"]
    assert (read["positions"], read["pool"]) == ("reply", "none")
    assert manifest_of(out)["provenance"]["metrics"]["val_auroc"] > 0.8

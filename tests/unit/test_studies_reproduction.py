"""A paper's table beside ours: its numbers are what the sheet says, ours are what they claim."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.engines.fake import FakeEngine
from demur.studies._reproduction import Paper, Reproduction
from demur.studies._study import StudyInputs, StudyResult
from tests.studies import NUM_BLOCKS, examples, of_all_sources, read


@pytest.fixture(scope="module")
def inputs() -> StudyInputs:
    return StudyInputs(
        read=partial(read, FakeEngine(num_layers=NUM_BLOCKS, strength=3.0)),
        num_blocks=NUM_BLOCKS,
        train=of_all_sources(20, start=0),
        val=of_all_sources(6, start=100),
        tests={
            "test_id": of_all_sources(4, start=200),
            "HarmB": examples("harm", "unsafe", 10),
            "XS": [*examples("x", "unsafe", 10), *examples("y", "safe", 10)],
            "AlpacaEval": examples("chat", "safe", 10, start=300),
        },
    )


def reproduction(paper: Paper = "lpm") -> Reproduction:
    return Reproduction(
        paper, "fake", "80 prompts of ours", missing={"Aegis": "not at hand"}, notes=("A note.",)
    )


@pytest.fixture(scope="module")
def result(inputs: StudyInputs) -> StudyResult:
    return reproduction().run(inputs)


def of(result: StudyResult, detector: str, origin: str = "ours") -> dict[str, object]:
    (row,) = [r for r in result.rows if r["detector"] == detector and r["from"] == origin]
    return dict(row)


def test_columns_are_the_papers_sets_that_are_at_hand(result: StudyResult) -> None:
    sets = ("HarmB", "XS", "mean_f1", "mean_of_eight", "mean_auroc", "AlpacaEval")
    assert result.columns == ("from", "detector", "tag", *sets, "benign_accuracy")


def test_the_papers_mean_is_over_the_same_sets_and_its_own_mean_beside_it(
    result: StudyResult,
) -> None:
    row = of(result, "Llama-3.1-8B-Instruct", "paper")
    assert row["mean_f1"] == pytest.approx((99.16 + 94.85) / 2)
    assert (row["mean_of_eight"], row["benign_accuracy"], row["tag"]) == (86.25, 98.41, "R")


@pytest.mark.parametrize("paper", ["lpm", "mlpm"])
def test_every_number_of_a_paper_has_a_tag(paper: Paper) -> None:
    published = reproduction(paper).published
    assert all(row["tag"] in ("R", "D") for row in published["rows"])
    assert all(
        "[D]" in line or "[R]" in line or ":" in line
        for line in (*published["layers"], *published["sample_size"])
    )


@pytest.mark.parametrize("paper", ["lpm", "mlpm"])
def test_the_papers_means_are_those_of_their_sets(paper: Paper) -> None:
    for row in reproduction(paper).published["rows"]:
        if "f1" in row:
            assert len(row["f1"]) == 8
            assert np.mean(row["f1"]) == pytest.approx(row["mean"], abs=0.06)


def test_flagging_everything_is_perfect_where_all_is_unsafe(result: StudyResult) -> None:
    row = of(result, "always flag")
    assert (row["HarmB"], row["AlpacaEval"]) == (100.0, 0.0)
    assert row["XS"] == pytest.approx(100 * 2 / 3)


def test_ours_stand_over_flagging_everything(result: StudyResult) -> None:
    ours = of(result, "LPM, middle layer")
    assert float(str(ours["XS"])) > 80
    assert float(str(ours["benign_accuracy"])) > 50


@pytest.mark.parametrize(
    ("paper", "detectors"),
    [
        ("lpm", {"LPM, last layer after the norm", "LPM, last layer before the norm"}),
        ("mlpm", {"MLPM", "vote over layers"}),
    ],
)
def test_a_paper_brings_its_detectors(
    paper: Paper, detectors: set[str], inputs: StudyInputs
) -> None:
    rows = reproduction(paper).run(inputs).rows
    assert detectors <= {str(row["detector"]) for row in rows if row["from"] == "ours"}


@pytest.mark.parametrize(
    "part",
    ["model is fake", "80 prompts of ours", "A note.", "Missing: Aegis (not at hand)", "Cholesky"],
)
def test_every_deviation_is_listed(part: str, result: StudyResult) -> None:
    assert any(part in finding for finding in result.findings)


def test_without_any_set_of_the_paper_there_is_nothing_to_reproduce(inputs: StudyInputs) -> None:
    tests: dict[str, list[Example]] = {"test_id": list(inputs.tests["test_id"])}
    with pytest.raises(ConfigError, match="none of the paper's harmful sets"):
        reproduction().run(replace(inputs, tests=tests))


def test_an_unknown_paper_is_refused() -> None:
    with pytest.raises(ConfigError, match="no paper 'gda'"):
        Reproduction("gda", "fake", "ours")  # type: ignore[arg-type]

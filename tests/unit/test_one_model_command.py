"""The command of benchmarks that measure one model: what is asked for, and what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.one_model import run

OPTIONS = {
    "share": (1.0, "of rows"), "steps": (120, "of each"), "learning_rate": (1e-3, "of each"),
    "ablations": (False, "also"),
}  # fmt: skip


def called_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Any]]:
    """Run a benchmark whose figures are what it was asked for."""
    asked: list[dict[str, Any]] = []

    def measure(model: str, detector: str, **options: Any) -> dict[str, Any]:
        asked.append({"model": model, "detector": detector, **options})
        return {"steps": options["steps"]}

    monkeypatch.setattr("sys.argv", ["benchmark", *words])
    run("mine", "What it is.", measure, lambda results: f"page of {results['steps']}", OPTIONS)
    return asked


def test_options_have_their_types_and_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = ("--model", "m", "--detector", "d", "--out", str(tmp_path))
    expected = {
        "model": "m", "detector": "d", "share": 1.0, "steps": 120, "learning_rate": 1e-3,
        "ablations": False,
    }  # fmt: skip
    assert called_with(monkeypatch, *shared) == [expected]
    given = ("--share", "0.5", "--steps", "7", "--learning-rate", "2e-4", "--ablations")
    changed = expected | {"share": 0.5, "steps": 7, "learning_rate": 2e-4, "ablations": True}
    assert called_with(monkeypatch, *shared, *given) == [changed]


def test_results_are_kept_with_the_machine_and_the_page_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called_with(monkeypatch, "--model", "m", "--detector", "d", "--out", str(tmp_path))
    kept = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    assert kept["steps"] == 120
    assert kept["machine"]["cores"] >= 1
    assert (tmp_path / "mine.md").read_text(encoding="utf-8") == "page of 120"
    assert capsys.readouterr().out == "page of 120\n"


def test_the_embedded_model_has_the_packaged_gate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (asked,) = called_with(monkeypatch, "--model", "embedded", "--out", str(tmp_path))
    assert asked["detector"] == "pretrained"

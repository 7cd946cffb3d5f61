"""`python -m benchmarks.two_step` on a tiny model, from training to its page, and a second run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import two_step, two_step_claims
from benchmarks.two_step_claims import ALWAYS, BASE, ORACLE, ROUTED
from benchmarks.two_step_rows import ATTACKS, LANGUAGES, PLAIN, SAFE
from demur.datasets import replies
from demur.studies import _arms
from tests.collection import Fields, write_collection
from tests.model_folder import MARKER, Workplace

NUM = 3


def texts(name: str, label: str, **more: object) -> list[Fields]:
    """Return prompts of which the unsafe ones hold the marker, but for one."""
    words = [f"{MARKER} " if label == "unsafe" and row else "" for row in range(NUM)]
    return [
        {"id": f"{name}-{label}-{row}", "text": f"{word}{name} {row}", "label": label, **more}
        for row, word in enumerate(words)
    ]


def everything() -> dict[str, dict[str, list[Fields]]]:
    """Return the collection's sets by split, a few rows each."""
    unsafe = dict.fromkeys((*PLAIN, *ATTACKS), "test_ood")
    unsafe |= {name: split for name, (split, _) in LANGUAGES.items()}
    found: dict[str, dict[str, list[Fields]]] = {
        name: {split: texts(name, "unsafe", source=name, language="vi")}
        for name, split in unsafe.items()
    }
    for name, (split, _) in SAFE.items():
        found.setdefault(name, {}).setdefault(split, []).extend(texts(name, "safe", source=name))
    questions = texts("question", "unsafe")
    found["gptfuzz_questions"] = {"train": questions}
    found["gptfuzz_responses"] = {
        "responses_train": [
            {**row, "id": f"r{n}", "response": f"Yes, {n}.", "response_label": "unsafe"}
            for n, row in enumerate(questions)
        ]
    }
    options = "-(A) this\n-(B) that"
    found["mmlu_500"] = {
        "utility": [
            {"id": f"m{n}", "text": f"Which {n}?\n{options}", "meta": {"answer": "B"}}
            for n in range(4)
        ]
    }
    found["gsm8k_test"] = {"utility": [{"id": f"g{n}", "text": f"{n} and 1?"} for n in range(4)]}
    found["mgsm"] = {
        "utility": [
            {"id": f"t{n}", "text": f"{n}?", "group": f"mgsm:{n}", "meta": {"answer": str(n + 1)}}
            for n in range(4)
        ]
    }
    return found


@pytest.fixture
def run(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], dict[str, Any]]:
    """Return what runs the benchmark, with a cache of its own, and returns its results."""
    monkeypatch.setenv("DEMUR_DATA", str(write_collection(tmp_path / "data", everything())))
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))
    shipped = replies.load("train")[::20]
    monkeypatch.setattr(replies, "load", lambda _split: shipped)
    for module in (_arms, two_step_claims):
        monkeypatch.setattr(module, "NUM_DRAWS", 10)
    options = [*workplace.guarded, "--dtype", "float32", "--methods", "dpo", "--steps", "1"]
    more = ["--share", "0.02", "--max-tokens", "4", "--timed", "1", "--out", str(tmp_path)]

    def once() -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["two_step", *options, *more])
        two_step.main()
        found: dict[str, Any] = json.loads((tmp_path / "two_step.json").read_bytes())
        return found

    return once


def test_a_run_compares_all_arms_and_a_second_one_draws_nothing_anew(
    run: Callable[[], dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = run()
    assert list(found["adapters"]) == ["dpo, plain", "dpo, wrapped"]
    for of in found["adapters"].values():
        assert {row["arm"] for row in of["rows"]} == {ALWAYS, ROUTED, ORACLE}
        assert set(of["safety"]) | set(of["loss"]) == set(found["kinds"])
        assert set(of["utility"]) == {"mmlu_500", "gsm8k_test", "own replies"}
    assert {row["arm"] for row in found["base"]} == {BASE}
    text = (tmp_path / "two_step.md").read_text(encoding="utf-8")
    assert "| dpo, wrapped | jbb_artifacts |" in text
    assert all(MARKER not in written for written in (text, json.dumps(found)))

    def must_not(*_arguments: object, **_named: object) -> None:
        raise AssertionError("it was there before")

    monkeypatch.setattr("benchmarks.artifacts.train", must_not)
    monkeypatch.setattr("benchmarks.two_step_utility.measured", must_not)
    drawn = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.jsonl")}
    again = run()
    assert again["adapters"] == found["adapters"]
    assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.jsonl")} == drawn
    capsys.readouterr()

"""`demur evaluate --responders` on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.model_folder import (
    CommandLine,
    Workplace,
    assert_one_line,
    labelled_prompts,
    write_lines,
)


@pytest.fixture
def suite_path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "mixed.jsonl", labelled_prompts(24, seed=5))


def rows_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["rows"]
    return found


def test_a_fixed_reply_in_five_arms(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = "I'm sorry, but I can't help with that."
    found = demur(
        "evaluate", "--suite", suite_path, "--responders", f"fixed_reply:{text}", "--out", out,
        *workplace.guarded,
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    rows = {(row["arm"], row["role"]): row for row in rows_of(out)}
    assert {arm for arm, _ in rows} == {"base", "always", "gated", "oracle", "random"}
    assert rows["always", "unsafe"]["refused"] == rows["always", "ordinary"]["refused"] == 1.0
    assert (rows["oracle", "unsafe"]["refused"], rows["oracle", "ordinary"]["switched_on"]) == (
        1,
        0,
    )
    for role in ("unsafe", "ordinary"):
        gated, base = rows["gated", role], rows["base", role]
        assert gated["refused"] >= gated["switched_on"]
        assert base["switched_on"] is None
    assert rows["gated", "unsafe"]["switched_on"] > rows["random", "unsafe"]["switched_on"]
    assert rows["base", "unsafe"]["perplexity"] > 1
    passed = next(line for line in found.stdout.splitlines() if "the gate passed" in line)
    identical, number = [int(word) for word in passed.split() if word.isdigit()][:2]
    assert identical == number > 0
    assert {path.name for path in out.iterdir()} >= {"table.md", "front.png"}
    written = (out / "results.json").read_text() + (out / "table.md").read_text()
    assert not any(str(row["text"]) in written for row in labelled_prompts(24, seed=5))
    assert str(workplace.artifact_path) not in written


def test_two_gates_are_refused(
    demur: CommandLine, workplace: Workplace, suite_path: Path, tmp_path: Path
) -> None:
    found = demur(
        "evaluate", "--suite", suite_path, "-r", "fixed_reply", "--out", tmp_path / "out",
        *workplace.guarded, "--detector", "pretrained",
    )  # fmt: skip
    assert_one_line(found, "--detector is given 2 times")


def test_an_unknown_responder_is_refused_before_any_work(
    demur: CommandLine, suite_path: Path, tmp_path: Path
) -> None:
    found = demur("evaluate", "--suite", suite_path, "-r", "chant", "--out", tmp_path / "out")
    assert_one_line(found, "there is no responder 'chant'")

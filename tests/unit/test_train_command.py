"""What `demur train` makes of its options."""

from pathlib import Path

import pytest

from demur.cli.train import blocks
from demur.core.errors import ConfigError
from tests.model_folder import CommandLine, Workplace, assert_one_line, write_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3]), ("0,2", [0, 2]), ("1-3", [1, 2, 3]), ("-1", [-1]), ("0, 2-3,-1", [0, 2, 3, -1])],
)
def test_blocks_are_numbers_and_ranges(text: str, expected: list[int]) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1..3", "1,,2"])
def test_other_texts_are_no_blocks(text: str) -> None:
    with pytest.raises(ConfigError, match="--layers"):
        blocks(text)


def test_options_of_adapters_reach_the_trainer(
    workplace: Workplace, demur: CommandLine, tmp_path: Path
) -> None:
    rows = [
        {"text": f"say {word}", "label": label, "safe_response": "No."}
        for word, label in (("red", "unsafe"), ("blue", "safe"))
    ]
    data, out = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "made"
    done = demur(
        "train", "sft", "--data", data, "--out", out, "--layers", "1-2", "--rank", "2",
        "--steps", "3", *workplace.model,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| layers | [1, 2] |" in card
    assert "| rank | 2 |" in card
    assert "| steps | 3 |" in card


def test_an_option_that_a_trainer_does_not_know_is_refused(
    workplace: Workplace, demur: CommandLine, tmp_path: Path
) -> None:
    done = demur("train", "steering", "--rank", "4", "--out", tmp_path / "made", *workplace.model)
    assert_one_line(done, "rank=4")

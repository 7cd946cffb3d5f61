"""What becomes of the questions of MMLU-Redux, which lie in a folder a subject."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from demur.core.errors import ConfigError, DataError
from demur.datasets import mmlu_redux
from tests.public_files import write_arrow, write_parquet


def question(number: int, error_type: str = "ok") -> dict[str, object]:
    return {
        "question": f"Made-up question {number}?",
        "choices": ["one", "two", "three", "four"],
        "answer": 0,
        "error_type": error_type,
        "source": None,
        "correct_answer": None,
        "potential_reason": None,
    }


def test_mmlu_redux_keeps_questions_without_an_error(tmp_path: Path) -> None:
    write_arrow(tmp_path / "virology", [question(0, "wrong_groundtruth"), question(1)])
    (example,) = mmlu_redux.load(tmp_path, check_counts=False)
    assert example.chat.last_user_text == "Made-up question 1?\nA. one\nB. two\nC. three\nD. four"
    assert (example.id, example.label) == ("mmlu_redux-test-virology-1", "safe")
    assert example.category == "virology"


def test_mmlu_redux_needs_a_list_of_answers(tmp_path: Path) -> None:
    write_parquet(tmp_path / "virology" / "test" / "0.parquet", [question(0) | {"choices": "one"}])
    with pytest.raises(DataError, match="row 0: choices is str: expected a list"):
        mmlu_redux.load(tmp_path, check_counts=False)


def test_mmlu_redux_needs_all_subjects_to_be_counted(tmp_path: Path) -> None:
    write_arrow(tmp_path / "virology", [question(0)])
    with pytest.raises(ConfigError, match="holds no folder anatomy, astronomy"):
        mmlu_redux.load(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        mmlu_redux.load(tmp_path / "virology" / "state.json")


def test_mmlu_redux_asks_the_hub_for_every_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def load_dataset(path: str, name: str, **options: Any) -> Any:
        seen.append(name)
        row = {"question": "Made-up?", "choices": ["one", "two"], "error_type": "ok"}
        return datasets.Dataset.from_list([row] * 100)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = mmlu_redux.load(check_counts=False)
    assert tuple(seen) == mmlu_redux.SUBJECTS
    assert len({example.id for example in examples}) == 3000

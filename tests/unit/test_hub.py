"""What the loaders of public sets share: counts, files, columns, and what is asked of the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from demur.core import registry
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets import (
    harmbench,
    mmlu_redux,
    simple_safety_tests,
    toxicchat,
    wildguardmix,
    wildjailbreak,
    xstest,
)
from demur.datasets._hub import Expected, flag_of
from tests.public_files import Rows, write_csv, write_parquet

PUBLIC_SETS = (
    "aegis1",
    "aegis2",
    "harmbench",
    "mmlu_redux",
    "openai_moderation",
    "simple_safety_tests",
    "toxicchat",
    "wildguardmix",
    "wildjailbreak",
    "xstest",
)


def sst_rows(count: int) -> Rows:
    return [
        {
            "id": f"sst_{number:03}",
            "harm_area": "made-up area",
            "category": "made-up kind",
            "prompt": f"made-up prompt {number}",
        }
        for number in range(count)
    ]


def test_the_published_counts_are_accepted(tmp_path: Path) -> None:
    write_csv(tmp_path / "sst_test_cases.csv", sst_rows(100))
    assert len(simple_safety_tests.load(tmp_path)) == 100


def test_other_counts_are_refused_with_both(tmp_path: Path) -> None:
    write_csv(tmp_path / "sst_test_cases.csv", sst_rows(3))
    expected = (
        r"simple_safety_tests, split 'test': found 3 unsafe and 0 safe prompts, expected 100 "
        r"unsafe and 0 safe prompts: take the files of Bertievidgen/SimpleSafetyTests, revision "
        r"98223c5\w+, or pass check_counts=False"
    )
    with pytest.raises(DataError, match=expected):
        simple_safety_tests.load(tmp_path)


def test_rows_that_the_label_rule_drops_are_not_counted(tmp_path: Path) -> None:
    labels = ["harmful"] * 754 + ["unharmful"] * 945 + [None] * 26
    rows: Rows = [
        {
            "prompt": "made-up prompt",
            "adversarial": False,
            "response": None,
            "prompt_harm_label": label,
            "response_harm_label": None,
            "subcategory": "made-up",
        }
        for label in labels
    ]
    write_parquet(tmp_path / "wildguard_test.parquet", rows)
    assert len(wildguardmix.load(tmp_path)) == 1699
    write_parquet(tmp_path / "wildguard_test.parquet", rows[1:] + rows[-27:-26])
    with pytest.raises(DataError, match="found 753 unsafe and 946 safe prompts"):
        wildguardmix.load(tmp_path)


@pytest.mark.parametrize(
    ("found", "is_admitted"),
    [
        (Expected(10, unsafe=4), True),
        (Expected(10, unsafe=5), False),
        (Expected(11, unsafe=4), False),
    ],
)
def test_counts_match_by_total_and_label(found: Expected, is_admitted: bool) -> None:
    assert Expected(10, unsafe=4).admits(found) is is_admitted


def test_a_total_alone_may_be_published() -> None:
    assert Expected(10).admits(Expected(10, unsafe=3))
    assert not Expected(10).admits(Expected(9, unsafe=3))
    assert str(Expected(10)) == "10 prompts"


@pytest.mark.parametrize(
    ("sets", "total", "num_unsafe"),
    [
        (wildguardmix.EXPECTED["test"], 754 + 945, 754),
        (wildjailbreak.EXPECTED["eval"], 2000 + 210, 2000),
        (toxicchat.EXPECTED["test", True], 362 + 2491, 362),
        (xstest.EXPECTED["responses"], 197 + 249, 197),
        (harmbench.EXPECTED["test"], 239, 239),
        (mmlu_redux.EXPECTED["test"], 2744, 0),
    ],
)
def test_expected_counts_are_those_of_the_paper(
    sets: Expected, total: int, num_unsafe: int
) -> None:
    assert (sets.total, sets.unsafe) == (total, num_unsafe)


def test_prompts_without_text_are_counted_and_left_out_with_a_warning(tmp_path: Path) -> None:
    rows = sst_rows(100)
    rows[7]["prompt"] = " "
    write_csv(tmp_path / "sst_test_cases.csv", rows)
    with pytest.warns(UserWarning, match="left out 1 prompts without text"):
        examples = simple_safety_tests.load(tmp_path)
    assert len(examples) == 99
    assert "sst_007" not in {example.id for example in examples}


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "harm_area"} for row in sst_rows(2)]
    path = write_csv(tmp_path / "sst_test_cases.csv", rows)
    with pytest.raises(DataError, match="has no column harm_area, only id, category, prompt"):
        simple_safety_tests.load(path)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_an_unknown_split_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    load = registry.load("datasets", name)
    with pytest.raises(ConfigError, match=rf"{name} has no split 'odd': expected one of \["):
        load(tmp_path, split="odd")


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_folder_that_does_not_exist_is_refused(name: str, tmp_path: Path) -> None:
    load = registry.load("datasets", name)
    with pytest.raises(ConfigError, match="odd"):
        load(tmp_path / "odd")


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_public_set_is_listed_with_the_package_that_it_needs(name: str) -> None:
    assert registry.methods("datasets")[name].packages == ("datasets",)


def test_a_folder_without_the_files_of_the_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(ConfigError, match=r"holds no file like train/wildguard_train\* or"):
        wildguardmix.load(tmp_path, split="train")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(ConfigError, match="is no data file"):
        simple_safety_tests.load(path)


def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "wildguard_test.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"cannot read .*wildguard_test\.parquet"):
        wildguardmix.load(tmp_path)


def test_of_two_formats_of_a_file_one_is_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "sst_test_cases.csv", sst_rows(3))
    write_parquet(tmp_path / "sst_test_cases.parquet", sst_rows(2))
    assert len(simple_safety_tests.load(tmp_path, check_counts=False)) == 2


def test_a_path_with_brackets_is_a_path_like_any_other(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a[b]*" / "sst_test_cases.csv", sst_rows(2))
    assert len(simple_safety_tests.load(path, check_counts=False)) == 2


def test_a_local_file_leaves_no_copy_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_csv(tmp_path / "sst_test_cases.csv", sst_rows(2))
    simple_safety_tests.load(path, check_counts=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cell", ["2", "yes", None, ""])
def test_a_flag_is_one_or_zero(cell: str | None) -> None:
    with pytest.raises(DataError, match=r"toxicity is .*: expected 1 or 0"):
        flag_of({"toxicity": cell}, "toxicity")


@pytest.mark.parametrize("cell", [1, 1.0, True, "1", "True"])
def test_a_flag_is_read_from_any_form(cell: object) -> None:
    assert flag_of({"toxicity": cell}, "toxicity")


def test_an_empty_flag_may_count_as_a_value() -> None:
    assert not flag_of({"S": float("nan")}, "S", missing=False)


Load = Callable[[], list[Example]]


@pytest.mark.parametrize(
    ("load", "asked"),
    [
        (
            lambda: wildguardmix.load(check_counts=False),
            {
                "path": "allenai/wildguardmix",
                "name": "wildguardtest",
                "split": "test",
                "revision": wildguardmix.REVISION,
            },
        ),
        (
            lambda: wildjailbreak.load(check_counts=False),
            {
                "path": "allenai/wildjailbreak",
                "name": "eval",
                "split": "train",
                "revision": "main",
                "delimiter": "\t",
                "keep_default_na": False,
            },
        ),
        (
            lambda: harmbench.load(check_counts=False),
            {
                "path": "csv",
                "data_files": harmbench.PARTS["test"].url,
                "split": "train",
                "delimiter": ",",
                "keep_default_na": False,
            },
        ),
    ],
)
def test_without_a_source_the_hub_is_asked(
    load: Load, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        seen.append({"path": path, **({"name": name} if name else {}), **options})
        row = {
            **dict.fromkeys(wildguardmix.COLUMNS),
            "adversarial": "",
            "data_type": "adversarial_benign",
            **dict.fromkeys(harmbench.PARTS["test"].columns),
            "FunctionalCategory": "contextual",
        }
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    if asked.get("name") == "eval":
        with pytest.warns(UserWarning, match="without text"):
            assert load() == []
    else:
        assert load() == []
    assert seen == [asked]


def test_a_set_that_the_hub_refuses_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("gated")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot read allenai/wildguardmix .*accept the set's"):
        wildguardmix.load()

"""What a suite holds: sets with names, splits, languages, and safe prompts to compare with."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from demur.core.errors import ConfigError, DataError
from demur.workflows.suites import EvaluationSet, Suite, load_suite
from tests.collection import rows, write_collection
from tests.model_folder import write_lines


@pytest.fixture
def collection_path(tmp_path: Path) -> Path:
    goals = ("jailbreakbench", "jbb_artifacts", "tense_attacks")
    return write_collection(
        tmp_path / "collection",
        {
            "pool": {
                "train": rows("pool", 3, "unsafe"),
                "test_id": [*rows("pool-test", 3, "unsafe"), *rows("pool-safe", 4, "safe")],
            },
            **{name: {"test_ood": rows(name, 5, "unsafe")} for name in goals},
            "multijail": {"test_ood": rows("multijail", 5, "unsafe", language="bn")},
            "oktest": {"test_ood": rows("oktest", 2, "safe")},
            "alpaca_eval": {"utility": rows("alpaca_eval", 8, "safe")},
            "mgsm": {"utility": rows("mgsm", 4, "safe", language="bn")},
            "bbh": {"utility": rows("bbh", 3, "safe")},
        },
    )


@pytest.fixture
def collection(collection_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMUR_DATA", str(collection_path))


def by_name(suite: Suite) -> Mapping[str, EvaluationSet]:
    return {of.name: of for of in suite.sets}


def write_sets(folder: Path, **sets: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in sets.items():
        write_lines(folder / f"{name}.jsonl", lines)
    return folder


def test_a_folder_is_a_suite_of_a_set_a_file(tmp_path: Path) -> None:
    path = write_sets(tmp_path / "mine", one=rows("a", 2, "unsafe"), two=rows("b", 3, "safe"))
    write_lines(path / "three.jsonl.gz", rows("c", 4, "safe"))
    suite = load_suite(str(path))
    assert suite.name == "mine"
    assert {name: len(of.examples) for name, of in by_name(suite).items()} == {
        "one": 2,
        "two": 3,
        "three": 4,
    }
    assert suite.labels == {"unsafe", "safe"}


def test_a_file_is_a_suite_of_one_set(tmp_path: Path) -> None:
    path = write_sets(tmp_path, mine=rows("a", 2, "unsafe")) / "mine.jsonl"
    assert [of.name for of in load_suite(str(path)).sets] == ["mine"]


def test_unsafe_prompts_alone_are_compared_with_all_safe_ones(tmp_path: Path) -> None:
    path = write_sets(
        tmp_path,
        harm=rows("a", 2, "unsafe"),
        mixed=[*rows("b", 2, "safe"), *rows("c", 2, "unsafe")],
        plain=rows("d", 2, "safe"),
    )
    pools = {name: of.pool for name, of in by_name(load_suite(str(path))).items()}
    assert pools == {"harm": ("mixed", "plain"), "mixed": (), "plain": ()}


def test_most_prompts_decide_on_the_language(tmp_path: Path) -> None:
    english, other = rows("a", 2, "safe"), rows("b", 3, "safe", language="de")
    path = write_sets(tmp_path, en=english, de=other, mixed=[*english, *other])
    assert {name: of.is_english for name, of in by_name(load_suite(str(path))).items()} == {
        "en": True,
        "de": False,
        "mixed": False,
    }


def test_the_limit_is_one_of_each_set_and_label(tmp_path: Path) -> None:
    path = write_sets(tmp_path, a=[*rows("a", 9, "safe"), *rows("a-unsafe", 9, "unsafe")])
    (of,) = load_suite(str(path), limit=2).sets
    assert sorted(str(example.label) for example in of.examples) == ["safe"] * 2 + ["unsafe"] * 2


def test_the_starter_suite_holds_prompts_that_were_held_back_english_ones_apart() -> None:
    suite = load_suite("starter")
    assert [(of.name, of.is_english) for of in suite.sets] == [
        ("starter_english", True),
        ("starter_others", False),
    ]
    assert {example.split for of in suite.sets for example in of.examples} == {"val"}


@pytest.mark.usefixtures("collection")
def test_the_collection_is_a_suite_of_its_test_splits() -> None:
    suite = load_suite("demur_data")
    assert {of.name: (of.split, of.pool) for of in suite.sets} == {
        "pool": ("test_id", ()),
        "jailbreakbench": ("test_ood", ("alpaca_eval",)),
        "jbb_artifacts": ("test_ood", ("alpaca_eval",)),
        "tense_attacks": ("test_ood", ("alpaca_eval",)),
        "multijail": ("test_ood", ("mgsm",)),
        "oktest": ("test_ood", ()),
        "alpaca_eval": ("utility", ()),
        "mgsm": ("utility", ()),
        "bbh": ("utility", ()),
    }
    assert len(by_name(suite)["pool"].examples) == 7
    assert set(suite.splits) == {"test_id", "test_ood", "utility"}


@pytest.mark.usefixtures("collection")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small", {"pool"}),
        ("ordinary", {"alpaca_eval", "mgsm", "bbh"}),
        (
            "harmful",
            {
                "jailbreakbench",
                "jbb_artifacts",
                "tense_attacks",
                "multijail",
                "alpaca_eval",
                "mgsm",
            },
        ),
    ],
)
def test_parts_of_the_collection_have_names(name: str, expected: set[str]) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert set(by_name(suite)) == expected


def test_a_folder_with_a_collection_needs_no_variable(
    collection_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEMUR_DATA", raising=False)
    assert len(load_suite(str(collection_path)).sets) == 9
    with pytest.raises(ConfigError, match="DEMUR_DATA is not set"):
        load_suite("small")


@pytest.mark.usefixtures("collection")
def test_sets_on_the_same_goals_are_one_cluster() -> None:
    suite = load_suite("demur_data")
    assert suite.clusters == (("jailbreakbench", "jbb_artifacts", "tense_attacks"),)


def test_sets_that_are_left_empty_go(tmp_path: Path) -> None:
    path = write_sets(tmp_path, a=rows("a", 2, "safe"), b=rows("b", 2, "unsafe"))
    kept = load_suite(str(path)).keeping(lambda name, row: name == "b" and row == 1)
    assert [(of.name, [e.id for e in of.examples]) for of in kept.sets] == [("b", ["b-1"])]


def test_what_is_no_suite_is_refused_with_the_names_of_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no suite 'mine': .*'starter', 'demur_data'"):
        load_suite("mine")
    with pytest.raises(ConfigError, match="there is no suite"):
        load_suite(str(tmp_path))


def test_prompts_without_a_label_are_refused(tmp_path: Path) -> None:
    path = write_sets(tmp_path, a=[{"id": "x1", "text": "hello"}])
    with pytest.raises(DataError, match=r"1 prompts of a have no label .*'x1'"):
        load_suite(str(path))


def test_a_suite_without_prompts_is_refused(tmp_path: Path) -> None:
    path = write_sets(tmp_path, a=[])
    with pytest.raises(DataError, match="holds no prompts"):
        load_suite(str(path))


def test_a_set_in_two_files_is_refused(tmp_path: Path) -> None:
    path = write_sets(tmp_path, a=rows("a", 1, "safe"))
    write_lines(path / "a.jsonl.gz", rows("a", 1, "safe"))
    with pytest.raises(ConfigError, match="holds a twice"):
        load_suite(str(path))

"""Which prompts a study gets: groups stay together, roles do not mix, what is missing is named."""

from pathlib import Path

import pytest

from demur.core.errors import ConfigError, DataError
from demur.datasets.demur_data import DemurData
from demur.workflows.paper_sets import PAPER_SETS, gather
from demur.workflows.study_sets import StudySets, limited, load_study_sets
from tests.collection import rows, write_collection
from tests.model_folder import write_lines


@pytest.fixture
def collection_path(tmp_path: Path) -> Path:
    return write_collection(
        tmp_path / "collection",
        {
            "pool": {
                "train": [*rows("pool", 6, "unsafe"), *rows("pool-safe", 6, "safe")],
                "val": [*rows("pool-val", 4, "unsafe"), *rows("pool-safe-val", 4, "safe")],
                "test_id": rows("pool-test", 3, "unsafe"),
            },
            "harmbench": {"test_ood": rows("harmbench", 5, "unsafe")},
            "multijail": {"test_ood": rows("multijail", 5, "unsafe", language="bn")},
            "alpaca_eval": {"utility": rows("alpaca_eval", 8, "safe")},
            "mgsm": {"utility": rows("mgsm", 4, "safe", language="bn")},
        },
    )


def test_the_collection_gives_its_small_selection_and_all_test_sets(collection_path: Path) -> None:
    sets = load_study_sets(str(collection_path))
    assert (len(sets.train), len(sets.val)) == (12, 8)
    assert {name: len(of) for name, of in sets.tests.items()} == {
        "test_id": 3,
        "harmbench": 5,
        "multijail": 5,
        "alpaca_eval": 8,
        "mgsm": 4,
    }


def test_sets_in_other_languages_stand_against_safe_prompts_in_other_languages(
    collection_path: Path,
) -> None:
    pools = load_study_sets(str(collection_path)).pools
    assert pools["harmbench"] == "alpaca_eval"
    assert pools["multijail"] == "mgsm"


def test_a_limit_holds_for_each_source_and_label(collection_path: Path) -> None:
    sets = load_study_sets(str(collection_path), limit=2)
    parts = (sets.train, sets.val, *sets.tests.values())
    assert [len(of) for of in parts] == [4, 4, 2, 2, 2, 2, 2]


def test_a_limited_set_is_drawn_in_order_and_by_the_seed(collection_path: Path) -> None:
    examples = load_study_sets(str(collection_path)).tests["alpaca_eval"]
    draws = [[e.id for e in limited(examples, 4, seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == sorted(draws[0])
    assert draws[0] != draws[2]


def of_files(tmp_path: Path) -> StudySets:
    groups = [f"g{n // 4}" for n in range(80)]
    prompts = [
        {**row, "group": group}
        for label in ("unsafe", "safe")
        for row, group in zip(rows(label, 80, label), [f"{label}{g}" for g in groups], strict=True)
    ]
    return load_study_sets(str(write_lines(tmp_path / "mine.jsonl", prompts)))


def test_files_are_parted_by_whole_groups(tmp_path: Path) -> None:
    sets = of_files(tmp_path)
    parts = [{e.group for e in of} for of in (sets.train, sets.val, sets.tests["test_id"])]
    assert [len(part) for part in parts] == [24, 8, 8]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_a_folder_of_files_is_read_whole(tmp_path: Path) -> None:
    for label in ("unsafe", "safe"):
        write_lines(tmp_path / f"{label}.jsonl", rows(label, 10, label))
    sets = load_study_sets(str(tmp_path))
    assert len(sets.train) + len(sets.val) + len(sets.tests["test_id"]) == 20


def test_the_starter_set_needs_no_files() -> None:
    sets = load_study_sets("starter", limit=20)
    assert {e.label for e in sets.train} == {"unsafe", "safe"}


def test_a_folder_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no prompts: expected .* 'starter'"):
        load_study_sets(str(tmp_path))


def test_prompts_of_one_label_to_choose_on_are_refused(tmp_path: Path) -> None:
    both = [*rows("a", 3, "unsafe"), *rows("b", 3, "safe")]
    parts = {"train": both, "val": rows("c", 3, "safe"), "test_id": rows("d", 3, "safe")}
    folder = write_collection(tmp_path / "collection", {"pool": parts})
    with pytest.raises(DataError, match=r"the 3 prompts to choose on have the labels \['safe'\]"):
        load_study_sets(str(folder))


def test_prompts_can_be_left_out_and_empty_test_sets_go(collection_path: Path) -> None:
    sets = load_study_sets(str(collection_path)).keeping(lambda e: e.source != "mgsm")
    assert "mgsm" not in sets.tests
    assert len(sets.tests["alpaca_eval"]) == 8


def test_sets_of_the_papers_are_taken_from_the_collection(collection_path: Path) -> None:
    found = gather(DemurData(collection_path))
    assert {name: len(of) for name, of in found.tests.items()} == {"HarmB": 5, "AlpacaEval": 8}


def test_every_set_of_the_papers_is_there_or_named_as_missing(collection_path: Path) -> None:
    found = gather(DemurData(collection_path))
    labels = {wanted.label for wanted in PAPER_SETS}
    assert set(found.tests) | (set(found.missing) - {"WG train"}) == labels
    assert not set(found.tests) & set(found.missing)


def test_a_set_of_another_size_than_published_is_noted(collection_path: Path) -> None:
    notes = gather(DemurData(collection_path)).notes
    assert any(note.startswith("HarmB: 5 / 0 prompts") and "239 / 0" in note for note in notes)


def test_files_that_cannot_be_read_are_missing_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "aegis1").mkdir()
    missing = gather(None, files=tmp_path).missing
    assert "holds no file like" in missing["Aegis"]


def test_publishers_files_come_before_the_collection(collection_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files" / "openai_moderation"
    folder.mkdir(parents=True)
    found = gather(DemurData(collection_path), files=tmp_path / "files")
    assert "OAI" in found.missing

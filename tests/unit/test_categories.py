import gzip
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demur.core.categories import (
    HAZARDS,
    OPENAI_KEYS,
    PATH,
    Mapped,
    is_listed,
    map_category,
    one_vs_rest_labels,
)
from demur.core.examples import Example, Label
from demur.core.types import Chat

TABLE: dict[str, Any] = tomllib.loads(PATH.read_text(encoding="utf-8"))
ENTRIES = [
    (source, category, fields)
    for source, categories in TABLE["categories"].items()
    for category, fields in categories.items()
]
ALL_KEYS = [*HAZARDS, *OPENAI_KEYS]


def example(source: str | None, category: str | None, label: Label | None = "unsafe") -> Example:
    return Example("1", Chat.from_text("x"), label=label, source=source, category=category)


def labels_of(source: str | None, category: str | None, label: Label | None = "unsafe") -> Any:
    """Return the labels of one prompt by key."""
    given = one_vs_rest_labels([example(source, category, label)])
    return {key: int(labels[0]) for key, labels in given.items()}


def test_there_are_14_hazards_and_13_keys() -> None:
    assert list(HAZARDS) == [f"S{number}" for number in range(1, 15)]
    assert len(set(OPENAI_KEYS)) == 13


def test_every_code_of_the_table_is_valid_and_stands_once() -> None:
    for source, category, fields in ENTRIES:
        assert {"hazards", "openai"} <= set(fields) <= {"hazards", "openai", "undecided"}, category
        assert set(fields["hazards"]) <= set(HAZARDS), (source, category)
        assert set(fields["openai"]) <= set(OPENAI_KEYS), (source, category)
        assert set(fields.get("undecided", [])) <= set(ALL_KEYS), (source, category)
        keys = [key for given in fields.values() for key in given]
        assert len(keys) == len(set(keys)), (source, category)


def test_what_is_undecided_belongs_to_a_scheme_that_knows_the_category() -> None:
    for source, category, fields in ENTRIES:
        for key in fields.get("undecided", []):
            assert fields["hazards" if key in HAZARDS else "openai"], (source, category, key)


def test_a_sub_key_stands_with_its_parent() -> None:
    for source, category, fields in ENTRIES:
        parents = {key.partition("/")[0] for key in fields["openai"]}
        assert parents <= set(fields["openai"]), (source, category)


def test_every_pair_stands_once() -> None:
    """A key that stands twice in one table is an error of TOML itself."""
    places = [*TABLE["categories"], *TABLE["without_categories"], *TABLE["same_as"]]
    assert len(places) == len(set(places))
    assert set(TABLE["same_as"].values()) <= set(TABLE["categories"])


def test_rules_are_for_sources_of_the_table() -> None:
    known = {*TABLE["categories"], *TABLE["same_as"]}
    assert {*TABLE["separators"], *TABLE["decided_sub_keys"]} <= known
    decided = {key for keys in TABLE["decided_sub_keys"].values() for key in keys}
    assert decided <= {key for key in OPENAI_KEYS if "/" in key}


def test_no_category_holds_the_separator_of_its_source() -> None:
    for source, separator in TABLE["separators"].items():
        categories = TABLE["categories"][TABLE["same_as"].get(source, source)]
        assert not [category for category in categories if separator in category]


@pytest.mark.parametrize(
    ("source", "category"),
    [(None, None), ("aart", None), ("aart", "no such crime"), ("no such set", "murder")],
)
def test_an_unknown_pair_maps_to_nothing(source: str | None, category: str | None) -> None:
    assert map_category(source, category) == Mapped()
    assert not is_listed(source, category)


def test_a_source_without_categories_is_listed_and_maps_to_nothing() -> None:
    assert is_listed("advbench", "harmful_behavior")
    assert map_category("advbench", "harmful_behavior") == Mapped()


def test_a_translation_has_the_categories_of_its_original() -> None:
    category = "Physical Harm / Self-harm"
    assert map_category("catqa_zh", category) == map_category("catqa_en", category)
    assert map_category("catqa_zh", category).hazards == ("S11",)


@pytest.mark.parametrize(
    ("source", "category", "hazards", "openai"),
    [
        ("openai_moderation", "S,S3", ("S4", "S12"), ("sexual", "sexual/minors")),
        ("multijail", "['Theft', 'Self-harm']", ("S2", "S11"), ("illicit", "self-harm")),
        ("multijail", "['Theft']", ("S2",), ("illicit",)),
        ("aegis2", "Sexual, Malware", ("S2", "S12"), ("illicit", "sexual")),
    ],
)
def test_a_list_of_categories_has_the_keys_of_all(
    source: str, category: str, hazards: tuple[str, ...], openai: tuple[str, ...]
) -> None:
    mapped = map_category(source, category)
    assert (mapped.hazards, mapped.openai) == (hazards, openai)


def test_an_unlisted_part_makes_a_list_unlisted() -> None:
    assert is_listed("aegis2", "Sexual, Malware")
    assert not is_listed("aegis2", "Sexual, no such category")


def test_a_safe_prompt_is_a_negative_of_every_key() -> None:
    assert set(labels_of("aart", "murder", "safe").values()) == {0}
    assert set(labels_of(None, None, "safe").values()) == {0}


def test_an_unsafe_prompt_of_unknown_category_is_left_out_of_every_key() -> None:
    assert set(labels_of(None, None).values()) == {-1}
    assert set(labels_of("advbench", "harmful_behavior").values()) == {-1}


def test_a_prompt_without_a_label_is_left_out() -> None:
    assert set(labels_of("aart", "murder", None).values()) == {-1}


def test_a_known_unsafe_prompt_is_a_positive_of_its_keys_and_a_negative_of_the_others() -> None:
    labels = labels_of("aart", "theft")
    assert [key for key in HAZARDS if labels[key] == 1] == ["S2"]
    assert {labels[key] for key in HAZARDS if key != "S2"} == {0}
    assert labels["illicit"] == 1
    assert labels["hate"] == labels["sexual/minors"] == 0


def test_what_one_scheme_knows_says_nothing_of_the_other() -> None:
    labels = labels_of("harmbench", "copyright")
    assert labels["S8"] == 1
    assert {labels[key] for key in OPENAI_KEYS} == {-1}


def test_a_key_that_is_undecided_is_left_out() -> None:
    labels = labels_of("aart", "rape")
    assert (labels["S3"], labels["S12"], labels["S2"]) == (1, -1, 0)
    assert (labels["sexual"], labels["sexual/minors"]) == (-1, -1)


def test_a_sub_key_is_undecided_where_only_its_parent_is_known() -> None:
    assert labels_of("aegis2", "Hate/Identity Hate")["hate/threatening"] == -1
    assert labels_of("strongreject", "Non-violent crimes")["illicit/violent"] == -1


def test_a_sub_key_is_decided_where_the_source_tells_it_apart() -> None:
    assert labels_of("openai_moderation", "H")["hate/threatening"] == 0
    assert labels_of("openai_moderation", "H,H2")["hate/threatening"] == 1
    assert labels_of("aart", "theft")["illicit/violent"] == 0
    assert labels_of("aart", "robbery")["illicit/violent"] == -1


def test_an_unknown_part_of_a_list_makes_the_rest_undecided() -> None:
    labels = labels_of("aegis2", "Sexual, Needs Caution")
    assert labels["S12"] == labels["sexual"] == 1
    assert {labels[key] for key in ALL_KEYS if key not in ("S12", "sexual")} == {-1}


def test_labels_keep_the_order_of_the_prompts_and_of_the_keys() -> None:
    given = one_vs_rest_labels(
        [example("aart", "theft"), example(None, None), example("aart", "murder", "safe")]
    )
    assert list(given) == ALL_KEYS
    assert given["S2"].dtype == np.int8
    assert given["S2"].tolist() == [1, -1, 0]


def test_no_prompts_give_empty_labels() -> None:
    assert {labels.shape for labels in one_vs_rest_labels([]).values()} == {(0,)}


@pytest.mark.slow
@pytest.mark.skipif("DEMUR_DATA" not in os.environ, reason="DEMUR_DATA is not set")
def test_every_category_of_an_unsafe_prompt_of_the_collection_stands_in_the_table() -> None:
    pairs = set()
    folder = Path(os.environ["DEMUR_DATA"])
    for entry in json.loads((folder / "index.json").read_bytes())["datasets"]:
        with gzip.open(folder / entry["file"], "rt", encoding="utf-8") as lines:
            rows = (json.loads(line) for line in lines)
            pairs |= {(row["source"], row["category"]) for row in rows if row["label"] == "unsafe"}
    assert pairs
    assert sorted(pair for pair in pairs if not is_listed(*pair)) == []

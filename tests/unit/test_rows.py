"""What the input contract promises: rows, splits, the starter set and the research collection."""

import codecs
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label, targets_of
from demur.core.types import Chat, Message
from demur.datasets import jsonl, splits, starter, written
from demur.datasets.demur_data import DemurData
from demur.datasets.rows import read_rows
from demur.datasets.splits import Splits
from tests.model_folder import write_lines, write_texts

ALL_FIELDS: dict[str, object] = {
    "id": "a",
    "text": "Hello",
    "system": "Be kind.",
    "label": "unsafe",
    "group": "g",
    "source": "s",
    "category": "c",
    "kind": "jailbreak",
    "split": "val",
    "language": "de",
    "response": "No.",
    "response_label": "safe",
    "complied": False,
}


def example_of(path: Path, fields: dict[str, object]) -> Example:
    (row,) = read_rows(write_lines(path / "rows.jsonl", [fields]))
    assert row.example is not None
    return row.example


def broken(path: Path, content: bytes) -> str:
    """Return the error that a file's content yields."""
    file = path / "broken.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rows(file)
    return str(error.value)


def test_every_field_is_read(tmp_path: Path) -> None:
    assert example_of(tmp_path, ALL_FIELDS) == Example(
        id="a",
        chat=Chat((Message("system", "Be kind."), Message("user", "Hello"))),
        label="unsafe",
        group="g",
        source="s",
        category="c",
        kind="jailbreak",
        split="val",
        language="de",
        response="No.",
        response_label="safe",
        complied=False,
    )


def test_fields_that_are_absent_or_null_are_none(tmp_path: Path) -> None:
    plain = example_of(tmp_path, {"id": "a", "text": "Hi"})
    nulls = {"label": None, "group": None, "system": None, "messages": None}
    assert plain == Example("a", Chat.from_text("Hi"))
    assert example_of(tmp_path, {"id": "a", "text": "Hi", **nulls}) == plain


def test_messages_are_read_with_their_roles(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    example = example_of(tmp_path, {"messages": turns, "system": "Be kind."})
    assert example.chat.as_messages() == [{"role": "system", "content": "Be kind."}, *turns]


def test_an_id_is_the_line_by_default_and_blank_lines_count() -> None:
    rows = read_rows(io.BytesIO(b'{"text": "a"}\n\n  \n{"text": "b"}\n{"text": "c", "id": 70}\n'))
    assert [(row.number, row.id) for row in rows] == [(1, "1"), (4, "4"), (5, "70")]


@pytest.mark.parametrize(
    ("given", "expected"), [(1, "unsafe"), (0, "safe"), ("unsafe", "unsafe"), ("safe", "safe")]
)
def test_labels_are_words_or_numbers(tmp_path: Path, given: object, expected: str) -> None:
    example = example_of(tmp_path, {"text": "a", "label": given, "response_label": given})
    assert (example.label, example.response_label) == (expected, expected)


@pytest.mark.parametrize("label", [2, "harmful", "", [1], {"label": 1}])
def test_another_label_is_refused_with_its_value_and_line(tmp_path: Path, label: object) -> None:
    lines = [{"text": "a"}, {"text": "b", "label": label}]
    message = broken(tmp_path, b"\n".join(json.dumps(line).encode() for line in lines))
    assert f"line 2: label is {label!r}: expected 'unsafe' or 'safe', or 1 or 0" in message


@pytest.mark.parametrize("complied", [1, "true", []])
def test_an_outcome_other_than_true_or_false_is_refused(tmp_path: Path, complied: object) -> None:
    message = broken(tmp_path, json.dumps({"text": "a", "complied": complied}).encode())
    assert f"line 1: complied is {complied!r}: expected true or false" in message


def test_known_outcomes_become_targets_and_unknown_ones_nan() -> None:
    def labelled(complied: bool | None, label: Label) -> Example:
        return Example(str(complied), Chat.from_text("a"), label, complied=complied)

    known = [labelled(True, "unsafe"), labelled(None, "safe"), labelled(False, "safe")]
    np.testing.assert_array_equal(targets_of(known).complied, [1.0, np.nan, 0.0])
    assert targets_of([labelled(None, "unsafe"), labelled(None, "safe")]).complied is None


def test_a_repeated_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = broken(tmp_path, b'{"text": "a", "id": "x"}\n{"text": "b"}\n{"text": "c", "id": "x"}')
    assert "line 3: id 'x' stands in line 1 too" in message


def test_an_id_that_is_another_lines_number_is_refused(tmp_path: Path) -> None:
    assert "line 2: id '2' stands in line 1" in broken(
        tmp_path, b'{"text": "a", "id": 2}\n{"text": "b"}'
    )


def test_a_gzipped_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    plain = write_texts(tmp_path / "a.jsonl", ["one", "zwölf"])
    packed = write_texts(tmp_path / "a.jsonl.gz", ["one", "zwölf"])
    assert packed.read_bytes() != plain.read_bytes()
    assert read_rows(packed) == read_rows(plain)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_at_the_start_of_a_file_is_skipped(
    pack: Callable[[bytes], bytes],
) -> None:
    content = b'{"text": "one"}\n{"text": "two"}\n'
    marked = io.BytesIO(pack(codecs.BOM_UTF8 + content))
    assert read_rows(marked) == read_rows(io.BytesIO(content))


@pytest.mark.parametrize("kept", [5, 20, -1])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, kept: int) -> None:
    content = gzip.compress(b'{"text": "a"}\n' * 50)
    assert "is no whole gzip file" in broken(tmp_path, content[:kept])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "broken JSON"),
        (b"Hello", "broken JSON"),
        (b'["a"]', "the line holds list: expected an object"),
        (b'{"text": "\xff"}', "byte 10 is no valid UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"id": "b"}', "neither text nor messages"),
        (b'{"text": "b", "messages": []}', "text and messages: give one of the two"),
        (b'{"text": 7}', "text is 7: expected a text"),
        (b'{"messages": "b"}', "messages is str: expected a list"),
        (b'{"text": "b", "id": 1.5}', "id is 1.5: expected a text or a whole number"),
        (b'{"text": "b", "id": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "b", "source": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "b", "system": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "b", "group": 3}', "group is 3: expected a text"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    message = broken(tmp_path, b'{"text": "a"}\n\n' + line + b"\n")
    assert "broken.jsonl, line 3: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": ""}, "the prompt is empty"),
        ({"text": " \n\t"}, "the prompt is empty"),
        ({"messages": []}, "no user message with text"),
        ({"messages": [{"role": "user", "content": " "}]}, "no user message with text"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 0 has role 'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, "content of type NoneType"),
        ({"messages": ["a"]}, "message 0 is 'a'"),
    ],
)
def test_what_cannot_be_scored_is_an_error_of_its_own_row(
    tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    rows = read_rows(write_lines(tmp_path / "a.jsonl", [fields, {"text": "fine"}]))
    assert rows[0].example is None
    assert reason in str(rows[0].error)
    assert rows[1].error is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")


def test_the_files_name_is_the_source_of_prompts_without_one(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b", "source": "own"}]
    loaded = jsonl.load(write_lines(tmp_path / "mine.jsonl.gz", rows))
    assert [example.source for example in loaded] == ["mine", "own"]


def test_loading_a_set_refuses_a_row_without_anything_to_score(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "mine.jsonl", ["a", ""])
    with pytest.raises(DataError, match=r"mine\.jsonl, line 2: the prompt is empty"):
        jsonl.load(path)


# Splits ------------------------------------------------------------------------------------------

PLACES: list[dict[str, object]] = [
    {"id": "1", "file": "a.jsonl", "split": "train", "small": True, "optional": False},
    {"id": "2", "file": "a.jsonl", "split": "train", "small": False, "optional": False},
    {"id": "3", "file": "a.jsonl", "split": "train", "small": True, "optional": True},
    {"id": "4", "file": "a.jsonl", "split": "val", "small": True},
    {"id": "5", "file": "a.jsonl", "split": "test", "small": True},
]


@pytest.fixture
def split_path(tmp_path: Path) -> Path:
    write_texts(tmp_path / "a.jsonl", ["t1", "t2", "t3", "v4", "x5"])
    return write_lines(tmp_path / "splits.jsonl.gz", PLACES)


@pytest.mark.parametrize(
    ("small", "optional", "expected"),
    [
        (False, False, ["1", "2"]),
        (True, False, ["1"]),
        (False, True, ["1", "2", "3"]),
        (True, True, ["1", "3"]),
    ],
)
def test_a_selection_holds_the_rows_that_are_marked(
    split_path: Path, small: bool, optional: bool, expected: list[str]
) -> None:
    chosen = Splits.read(split_path).select(
        split_path.with_name("a.jsonl"), ["train"], small=small, optional=optional
    )
    assert [example.id for example in chosen] == expected
    assert {example.split for example in chosen} == {"train"}


def test_train_and_val_hold_nothing_of_other_splits(split_path: Path) -> None:
    parts = splits.apply_splits([split_path.with_name("a.jsonl")], split_path)
    assert [example.id for example in parts.train] == ["1", "2"]
    assert [example.id for example in parts.val] == ["4"]


def test_a_file_that_the_splits_do_not_know_is_refused(split_path: Path) -> None:
    other = write_texts(split_path.with_name("b.jsonl"), ["t"])
    with pytest.raises(ConfigError, match=r"places no prompt of b\.jsonl"):
        Splits.read(split_path).select(other, ["train"])


def test_a_prompt_without_a_place_is_refused(split_path: Path) -> None:
    path = write_texts(split_path.with_name("a.jsonl"), ["t"] * 6)
    with pytest.raises(DataError, match=r"has no place for '6' of a\.jsonl"):
        Splits.read(split_path).select(path, ["train"])


def test_a_prompt_placed_twice_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "splits.jsonl", [*PLACES, PLACES[0]])
    with pytest.raises(DataError, match=r"line 6: '1' of a\.jsonl was placed before"):
        Splits.read(path)


@pytest.mark.parametrize("field", ["id", "file", "split"])
def test_a_place_without_a_field_is_refused_with_its_line(tmp_path: Path, field: str) -> None:
    fields = {name: value for name, value in PLACES[0].items() if name != field}
    path = write_lines(tmp_path / "splits.jsonl", [PLACES[1], fields])
    with pytest.raises(DataError, match=f"line 2: {field} is None: expected a text"):
        Splits.read(path)


def test_a_missing_split_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.jsonl"):
        Splits.read(tmp_path / "none.jsonl")


# The sets that ship ------------------------------------------------------------------------------

SHIPPED = pytest.mark.parametrize(
    "shipped", [starter.load(), written.load()], ids=["starter", "written"]
)


@SHIPPED
def test_a_set_that_ships_has_at_least_300_prompts_with_ids_of_their_own(
    shipped: list[Example],
) -> None:
    ids = [example.id for example in shipped]
    assert len(ids) == len(set(ids)) >= 300
    assert len({example.chat for example in shipped}) == len(ids)


@SHIPPED
def test_every_language_of_a_set_that_ships_has_both_labels(shipped: list[Example]) -> None:
    pairs = {(example.language, example.label) for example in shipped}
    languages = {language for language, _ in pairs}
    assert None not in languages
    assert pairs == {(name, label) for name in languages for label in ("unsafe", "safe")}


@SHIPPED
def test_groups_of_a_set_that_ships_never_straddle_splits(shipped: list[Example]) -> None:
    places = {(example.group, example.split) for example in shipped}
    groups = [group for group, _ in places]
    assert None not in groups
    assert len(groups) == len(set(groups))


def test_every_source_of_the_written_set_has_both_labels_to_fit_and_to_choose_on() -> None:
    found = {(example.source, example.split, example.label) for example in written.load()}
    sources = {source for source, _, _ in found}
    assert len(found) == 2 * 2 * len(sources) == 16


def test_the_starter_set_is_parted_into_train_val_and_demo() -> None:
    sizes = [len(starter.load(split)) for split in ("train", "val", "demo")]
    assert sum(sizes) == len(starter.load())
    assert sizes[2] == 12


def test_no_demo_prompt_stands_in_another_split() -> None:
    demo = {example.chat for example in starter.load("demo")}
    others = {example.chat for split in ("train", "val") for example in starter.load(split)}
    assert len(demo) == 12
    assert not demo & others


# The research collection -------------------------------------------------------------------------


@pytest.fixture
def collection_path(split_path: Path) -> Path:
    entry = {"file": "a.jsonl", "kind": "mixed", "repo": "somebody/a", "licence": "mit"}
    flags = [("a", True, False), ("unstated", False, False), ("research_only", True, True)]
    index = [
        {**entry, "name": name, "licence_stated": stated, "non_commercial": non_commercial}
        for name, stated, non_commercial in flags
    ]
    split_path.with_name("index.json").write_text(json.dumps({"datasets": index}))
    return split_path.parent


def test_the_collection_is_found_through_the_environment(
    collection_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMUR_DATA", str(collection_path))
    assert list(DemurData().sets) == ["a", "unstated", "research_only"]


def test_only_sets_with_a_commercial_licence_may_ship(collection_path: Path) -> None:
    shipping = [info.name for info in DemurData(collection_path).sets.values() if info.may_ship]
    assert shipping == ["a"]


def test_a_set_is_read_by_its_splits(collection_path: Path) -> None:
    collection = DemurData(collection_path)
    assert [e.id for e in collection.load("a", ["train", "val"])] == ["1", "2", "4"]
    assert [e.id for e in collection.load("a", ["train"], small=True, optional=True)] == ["1", "3"]


def test_an_unknown_set_is_refused_with_the_known_ones(collection_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no set 'b': expected one of .*'a'"):
        DemurData(collection_path).load("b", ["train"])


@pytest.mark.parametrize("value", [None, ""])
def test_without_demur_data_the_error_names_the_variable(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEMUR_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("DEMUR_DATA", value)
    with pytest.raises(ConfigError, match="DEMUR_DATA is not set"):
        DemurData()


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no index\.json"):
        DemurData(tmp_path)

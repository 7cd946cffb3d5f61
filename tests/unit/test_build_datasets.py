"""The collection is rebuilt from its sources exactly, or a set is refused and says why."""

import gzip
import hashlib
import http.client
import json
import os
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.datasets.demur_data import DemurData
from demur.datasets.recipes import readers
from demur.datasets.recipes.collection import Collection, as_lines, compress
from demur.datasets.recipes.recipes import Recipe, Source
from demur.datasets.recipes.tabulate import tabulate
from demur.workflows import sources
from demur.workflows.build_datasets import CACHE, Builder, Outcome
from demur.workflows.sources import Checkouts, Web
from tests.model_folder import CommandLine, assert_one_line

COMMIT = "c0ffee" * 6 + "beef"
BIRDS, FISH = "maker/birds", "maker/fish"
FILES = {
    f"{BIRDS}/data/birds.json": [
        {"instruction": "Name a heron. ", "input": ""},
        {"instruction": "Where does it stand?", "input": "A mill by a river"},
        {"instruction": "This one is in no table", "input": ""},
    ],
    f"{FISH}/fish list.json": {"asked": ["What is a trout?", "Who ate it?"], "left": ["Nothing"]},
}
RECORDS = {
    "birds": [
        {"text": "Where does it stand?\n\nA mill by a river", "label": "safe", "group": "near:1"},
        {"text": "Name a heron.", "label": "unsafe"},
    ],
    "fish": [{"text": "What is a trout?", "label": "safe", "group": "pond"}],
    "secret": [{"text": "No licence for this", "label": "safe"}],
    "later": [{"text": "Nobody wrote a recipe", "label": "safe"}],
}
RECIPES_OF_TESTS = {
    "birds": Recipe(("data/birds.json",), readers.instructions),
    "fish": Recipe(
        ("gone.json",),
        readers.strings,
        source=Source(FISH, COMMIT),
        other_paths=("fish list.json",),
    ),
    "secret": Recipe(("secret.json",), readers.strings),
}


def write_collection(folder: Path) -> Path:
    """Write what a maintainer has: the index, the splits and the sets."""
    folder.mkdir()
    places: list[Mapping[str, object]] = []
    entries = []
    for name, rows in RECORDS.items():
        file = f"{name}.jsonl.gz"
        records = [{"id": f"{name}-{i:05d}", **row} for i, row in enumerate(rows)]
        (folder / file).write_bytes(compress(as_lines(records)))
        entries.append(
            {"name": name, "file": file, "repo": BIRDS, "commit": COMMIT, "licence": "MIT"}
            | {"kind": "mixed", "non_commercial": False, "licence_stated": name != "secret"}
            | {"sha256": "of the compressed file", "bytes": 1}
        )
        for i, record in enumerate(records):
            place = {"id": record["id"], "file": file, "label": record["label"]}
            places.append(place | {"split": "train"} | ({"small": True} if i else {}))
    (folder / "splits.jsonl.gz").write_bytes(compress(as_lines(places)))
    index = {"format": "a form", "splits_file": {}, "datasets": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def write_checkouts(folder: Path, files: Mapping[str, object] = FILES) -> Path:
    for path, content in files.items():
        owner, name, rest = path.split("/", 2)
        place = folder / f"{owner}__{name}" / rest
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content))
    return folder


@dataclass
class Internet:
    """Answers requests for the made-up repositories, and remembers them."""

    failures: list[Exception] = field(default_factory=list)
    """Come first, one a request."""
    asked: list[str] = field(default_factory=list)

    def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        if self.failures:
            raise self.failures.pop(0)
        for path, content in FILES.items():
            owner, name, rest = path.split("/", 2)
            if url == self.url(f"{owner}/{name}", rest.replace(" ", "%20")):
                return json.dumps(content).encode()
        raise urllib.error.HTTPError(url, 404, "Not Found", Message(), None)

    @staticmethod
    def url(repo: str, path: str) -> str:
        return f"https://raw.githubusercontent.com/{repo}/{COMMIT}/{path}"


Build = Callable[..., Outcome]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the made-up collection the one that is built, and return its originals' folder."""
    originals = write_collection(tmp_path / "originals")
    tables = tmp_path / "tables"
    tabulate(originals, tables, RECIPES_OF_TESTS)
    made_up_builder = partial(Builder, collection=Collection(tables), recipes=RECIPES_OF_TESTS)
    monkeypatch.setattr("demur.cli.datasets.Builder", made_up_builder)
    monkeypatch.setattr(sources, "PAUSE_S", 0.0)
    return originals


@pytest.fixture
def build(tmp_path: Path, made_up: Path) -> Build:
    tables = Collection(tmp_path / "tables")

    def run(given: sources.Sources, *only: str) -> Outcome:
        out = Builder(tmp_path / "out", given, tables, RECIPES_OF_TESTS)
        return out.build(only, report=lambda *_: None)

    return run


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("name", ["birds", "fish"])
def test_a_set_comes_out_as_it_was(tmp_path: Path, made_up: Path, build: Build, name: str) -> None:
    build(Checkouts(write_checkouts(tmp_path / "checkouts")))
    file = f"{name}.jsonl.gz"
    assert content(tmp_path / "out" / file) == content(made_up / file)


def test_the_folder_is_read_as_the_collection(tmp_path: Path, build: Build) -> None:
    build(Checkouts(write_checkouts(tmp_path / "checkouts")))
    read = DemurData(tmp_path / "out")
    assert list(read.sets) == ["birds", "fish"]
    (chosen,) = read.load("birds", ["train"], small=True)
    assert (chosen.id, chosen.label) == ("birds-00001", "unsafe")
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert index["splits_file"]["counts"] == {"train": {"unsafe": 1, "safe": 2}}
    compressed = (tmp_path / "out" / "fish.jsonl.gz").read_bytes()
    assert index["datasets"][1]["sha256"] == hashlib.sha256(compressed).hexdigest()


def test_what_is_left_out_is_named(tmp_path: Path, build: Build) -> None:
    outcome = build(Checkouts(write_checkouts(tmp_path / "checkouts")))
    assert outcome.built == ["birds", "fish"]
    assert outcome.unlicensed == ["secret"]
    assert outcome.without_recipe == ["later"]
    assert outcome.refused == {}


def test_no_text_stands_in_a_table(tmp_path: Path, made_up: Path) -> None:
    for path in (tmp_path / "tables" / "tables").iterdir():
        assert b"heron" not in content(path)
        assert b"trout" not in content(path)
    assert sorted(path.name for path in (tmp_path / "tables" / "tables").iterdir()) == [
        "birds.jsonl.gz",
        "fish.jsonl.gz",
    ]


def test_only_some_sets_are_built_and_a_later_run_adds_others(tmp_path: Path, build: Build) -> None:
    checkouts = Checkouts(write_checkouts(tmp_path / "checkouts"))
    assert build(checkouts, "fish").built == ["fish"]
    assert list(DemurData(tmp_path / "out").sets) == ["fish"]
    outcome = build(checkouts)
    assert (outcome.built, outcome.unchanged) == (["birds"], ["fish"])
    assert list(DemurData(tmp_path / "out").sets) == ["birds", "fish"]


def test_a_damaged_set_is_built_again(tmp_path: Path, build: Build) -> None:
    checkouts = Checkouts(write_checkouts(tmp_path / "checkouts"))
    build(checkouts)
    file = tmp_path / "out" / "birds.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-9])
    assert build(checkouts).built == ["birds"]


def test_a_set_without_its_records_is_refused_by_their_ids(tmp_path: Path, build: Build) -> None:
    files = {**FILES, f"{BIRDS}/data/birds.json": [{"instruction": "Name a heron!", "input": ""}]}
    outcome = build(Checkouts(write_checkouts(tmp_path / "checkouts", files)))
    assert "2 of 2 records" in outcome.refused["birds"]
    assert "birds-00000, birds-00001" in outcome.refused["birds"]
    assert "heron" not in outcome.refused["birds"]
    assert outcome.built == ["fish"]
    assert list(DemurData(tmp_path / "out").sets) == ["fish"]
    assert not (tmp_path / "out" / "birds.jsonl.gz").exists()


def test_an_unreadable_source_is_refused_without_its_text(tmp_path: Path, build: Build) -> None:
    files = {**FILES, f"{BIRDS}/data/birds.json": [{"a heron": "stood"}]}
    outcome = build(Checkouts(write_checkouts(tmp_path / "checkouts", files)))
    assert "KeyError" in outcome.refused["birds"]
    assert "heron" not in outcome.refused["birds"]


def test_a_set_with_another_hash_is_refused_with_both(tmp_path: Path, build: Build) -> None:
    index = tmp_path / "tables" / "index.json"
    entries = json.loads(index.read_bytes())
    expected = entries["datasets"][0]["content_sha256"]
    entries["datasets"][0]["content_sha256"] = "0" * 64
    index.write_text(json.dumps(entries))
    outcome = build(Checkouts(write_checkouts(tmp_path / "checkouts")))
    assert f"expected content with SHA-256 {'0' * 64}, found {expected}" in outcome.refused["birds"]


def test_a_missing_checkout_is_named_with_its_commit(tmp_path: Path, build: Build) -> None:
    outcome = build(Checkouts(tmp_path))
    assert "maker__birds" in outcome.refused["birds"]
    assert COMMIT in outcome.refused["birds"]


def test_what_was_fetched_is_not_fetched_again(tmp_path: Path, build: Build) -> None:
    internet = Internet()
    assert build(Web(tmp_path / "out" / CACHE, internet)).built == ["birds", "fish"]
    assert internet.asked == [
        internet.url(BIRDS, "data/birds.json"),
        internet.url(FISH, "gone.json"),
        internet.url(FISH, "fish%20list.json"),
    ]
    for path in (tmp_path / "out").glob("*.gz"):
        path.unlink()
    internet.asked.clear()
    assert build(Web(tmp_path / "out" / CACHE, internet), "birds").built == ["birds"]
    assert internet.asked == []


@pytest.mark.parametrize(
    "failure", [TimeoutError("timed out"), http.client.IncompleteRead(b"half")], ids=type
)
def test_a_fetch_is_tried_again(tmp_path: Path, build: Build, failure: Exception) -> None:
    internet = Internet([failure, failure])
    assert build(Web(tmp_path / "out" / CACHE, internet), "birds").built == ["birds"]
    assert len(internet.asked) == 3


def test_a_network_that_is_away_ends_the_run_with_the_address(tmp_path: Path, build: Build) -> None:
    internet = Internet([urllib.error.URLError("no route")] * 3)
    with pytest.raises(ConfigError, match=r"cannot fetch https://\S+birds.json \(no route\)"):
        build(Web(tmp_path / "out" / CACHE, internet))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, build: Build) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds something else"):
        build(Checkouts(tmp_path))


def test_an_unknown_set_is_refused(tmp_path: Path, build: Build) -> None:
    with pytest.raises(ConfigError, match="no set 'bird'"):
        build(Checkouts(tmp_path), "bird")


def test_the_command_tells_what_it_left_out(
    demur: CommandLine, tmp_path: Path, made_up: Path
) -> None:
    folder = write_checkouts(tmp_path / "checkouts")
    outcome = demur("datasets", "build", "--from", folder, "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == ""
    assert "no licence is stated: secret" in outcome.error
    assert "no recipe yet: later" in outcome.error
    assert "2 sets, of which 0 lay there already" in outcome.error


def test_the_command_ends_in_code_3_if_a_set_is_refused(
    demur: CommandLine, tmp_path: Path, made_up: Path
) -> None:
    outcome = demur("datasets", "build", "--from", tmp_path, "--out", tmp_path / "out")
    assert outcome.exit_code == 3
    assert "refused birds: there is no file" in outcome.error


def test_a_failing_network_is_one_line_that_names_the_way_out(
    demur: CommandLine, tmp_path: Path, made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    outcome = demur("datasets", "build", "--out", tmp_path / "out")
    assert_one_line(outcome, "https://raw.githubusercontent.com/maker/birds/", "--from FOLDER")


def test_a_from_that_is_no_folder_is_refused(demur: CommandLine, tmp_path: Path) -> None:
    outcome = demur("datasets", "build", "--from", tmp_path / "no", "--out", tmp_path / "out")
    assert_one_line(outcome, "is no folder")


@pytest.mark.slow
@pytest.mark.skipif(
    not {"DEMUR_DATA", "DEMUR_SOURCES"} <= set(os.environ), reason="needs the collection"
)
def test_the_collection_is_rebuilt_from_checkouts(tmp_path: Path) -> None:
    given = Path(os.environ["DEMUR_DATA"])
    outcome = Builder(tmp_path / "out", Checkouts(Path(os.environ["DEMUR_SOURCES"]))).build(
        report=lambda *_: None
    )
    assert outcome.refused == {}
    built = DemurData(tmp_path / "out").sets.values()
    files = {made.file for made in built}
    assert all(content(tmp_path / "out" / file) == content(given / file) for file in files)
    places = content(given / "splits.jsonl.gz").splitlines()
    kept = [line for line in places if json.loads(line)["file"] in files]
    assert content(tmp_path / "out" / "splits.jsonl.gz").splitlines() == kept

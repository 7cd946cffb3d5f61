"""`python -m benchmarks.studies` on a tiny model: a folder a study, and an index of all."""

import json
from pathlib import Path

import pytest

from benchmarks import studies
from benchmarks.rows import Selection
from demur.datasets.demur_data import DemurData
from tests.collection import rows, write_collection
from tests.model_folder import Workplace


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    both = [*rows("a", 30, "unsafe"), *rows("b", 30, "safe")]
    val, later = ([{**row, "id": f"{part}-{row['id']}"} for row in both] for part in ("v", "t"))
    folder = write_collection(
        tmp_path / "data", {"pool": {"train": both, "val": val, "test_id": later}}
    )
    monkeypatch.setenv("DEMUR_DATA", str(folder))
    return folder


def rows_of_pool(data: DemurData, *, most: int | None = None) -> Selection:
    """Return the rows of the other benchmarks, without those that ship with demur."""
    assert most is None, "all sizes take all rows"
    train, val = (data.load("pool", (split,)) for split in ("train", "val"))
    return Selection("research", train, val, "nothing")


def test_every_study_has_its_folder_and_sample_sizes_may_go_over_the_limit(
    collection: Path, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--limit",
        "10",
        "--seeds",
        "1",
        "--dtype",
        "float32",
        "--out",
        str(tmp_path / "out"),
    ]
    names = ["--studies", "layers,sample_size", "--all-sizes"]
    monkeypatch.setattr(studies, "research_rows", rows_of_pool)
    monkeypatch.setattr("sys.argv", ["studies", *map(str, workplace.model), *options, *names])
    studies.main()
    (folder,) = (tmp_path / "out").iterdir()
    assert {path.name for path in folder.iterdir()} == {"README.md", "layers", "sample_size"}
    found = json.loads((folder / "sample_size" / "results.json").read_text())
    assert found["about"]["prompts"] == {"train": 60, "val": 60, "test_id": 60}
    assert {row["prompts_a_class"] for row in found["rows"]} == {10, 30}

"""The index of a model's studies: all that are there, with what they ran on."""

import json
from pathlib import Path

from benchmarks.studies_report import index

ABOUT = {
    "model": {"dtype": "bfloat16"},
    "machine": {"processor": "Some CPU", "cores": 2},
    "limit": 40,
    "seeds": [0, 1],
    "prompts": {"train": 1000, "val": 80, "test_id": 50, "xstest": 70},
    "seconds": 1234.5,
}


def write(folder: Path, name: str, finding: str) -> None:
    (folder / name).mkdir(parents=True)
    content = {"title": name.title(), "question": "Why?", "findings": [finding], "about": ABOUT}
    (folder / name / "results.json").write_text(json.dumps(content))


def test_the_index_holds_the_findings_of_every_study_that_was_run(tmp_path: Path) -> None:
    write(tmp_path / "model", "layers", "The last is worst.")
    write(tmp_path / "model", "detectors", "Linear is enough.")
    lines = index(tmp_path / "model").splitlines()
    assert lines[0] == "# Studies of model"
    assert [line for line in lines if line[:2] in ("##", "- ")] == [
        "## Detectors", "- Linear is enough.", "## Layers", "- The last is worst.",
    ]  # fmt: skip
    assert "Why? [Table and pictures](layers/table.md)" in lines


def test_the_index_names_machine_prompts_and_seconds(tmp_path: Path) -> None:
    write(tmp_path, "layers", "So.")
    assert (
        "bfloat16 on Some CPU, 2 cores; up to 40 prompts of a source and label: 1,000 to fit, 80 "
        "to choose and 120 to test; 2 seeds; 1,234 s"
    ) in index(tmp_path)


def test_results_of_all_prompts_say_so(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    about = {**ABOUT, "limit": None}
    content = {"title": "Layers", "question": "Why?", "findings": [], "about": about}
    (tmp_path / "layers" / "results.json").write_text(json.dumps(content))
    assert "; all prompts of a source and label: " in index(tmp_path)

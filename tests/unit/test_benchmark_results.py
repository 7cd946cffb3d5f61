"""The files that benchmarks leave."""

import json
from pathlib import Path

import pytest

from benchmarks.results_files import keep


@pytest.mark.parametrize("prints_json", [False, True])
def test_figures_and_page_are_written_and_one_is_printed(
    prints_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "results"
    keep("speed", {"rate": 0.5}, "# Speed\n", folder=folder, prints_json=prints_json)
    assert json.loads((folder / "speed.json").read_text()) == {"rate": 0.5}
    assert (folder / "speed.md").read_text() == "# Speed\n"
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"rate": 0.5} if prints_json else printed == "# Speed\n\n"

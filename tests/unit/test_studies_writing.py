"""How a study's answer is written: its rows, its table and its pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

from demur.core.errors import DataError
from demur.studies._study import HeatMap, Plot, Series, StudyResult
from demur.studies._writing import write


def result_of(**changes: Any) -> StudyResult:
    fields: dict[str, Any] = {
        "title": "A | title",
        "question": "Why?",
        "columns": ("name", "value"),
        "rows": ({"name": "a|b", "value": 0.5}, {"name": "c", "value": None}),
        "plots": (
            Plot("curve", "Curve", "x", "y", (Series("s", (1.0, 2.0), (0.5, 0.6), (0.1, 0.1)),)),
            Plot("bars", "Bars", "", "y", (Series("s", ("a", "b"), (0.5, 0.6)),), kind="bar"),
            HeatMap("map", "Map", ("a", "b"), ("c",), ((0.5,), (None,))),
        ),
        "findings": ("It is so.",),
    }
    return StudyResult(**{**fields, **changes})


def test_a_result_is_written_with_a_picture_a_plot(tmp_path: Path) -> None:
    write(result_of(), tmp_path / "out", about={"model": "fake"})
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"results.json", "table.md", "curve.png", "bars.png", "map.png"}


def test_results_json_holds_the_rows_and_what_they_depend_on(tmp_path: Path) -> None:
    write(result_of(plots=()), tmp_path, about={"model": "fake"})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["about"] == {"model": "fake"}
    assert content["rows"] == [{"name": "a|b", "value": 0.5}, {"name": "c", "value": None}]


def test_the_table_escapes_what_would_part_its_cells(tmp_path: Path) -> None:
    write(result_of(plots=()), tmp_path)
    assert r"| a\|b | 0.500 |" in (tmp_path / "table.md").read_text().splitlines()


@pytest.mark.parametrize(
    ("row", "part"), [({"name": "a"}, "expected"), ({"name": "a", "value": float("nan")}, "is nan")]
)
def test_a_row_of_other_columns_or_without_a_number_is_refused(
    row: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError, match=part):
        result_of(rows=(row,))


def test_two_plots_of_one_name_are_refused(tmp_path: Path) -> None:
    plot = HeatMap("map", "Map", ("a",), ("c",), ((0.5,),))
    with pytest.raises(DataError, match="one name"):
        write(result_of(plots=(plot, plot)), tmp_path)

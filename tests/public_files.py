"""Writes made-up rows in the forms in which public sets lie on the hub."""

import csv
import json
from pathlib import Path

import datasets

Rows = list[dict[str, object]]


def write_parquet(path: Path, rows: Rows) -> Path:
    """Write one parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def write_arrow(path: Path, rows: Rows) -> Path:
    """Write a folder with one arrow file, and what the library puts beside it."""
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def write_csv(path: Path, rows: Rows, *, delimiter: str = ",") -> Path:
    """Write one CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, rows: Rows) -> Path:
    """Write one JSON file that holds a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path

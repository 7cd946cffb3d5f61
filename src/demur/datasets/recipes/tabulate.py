"""Writes `index.json` and the tables from a folder that holds the collection.

python -m demur.datasets.recipes.tabulate FOLDER

To be run when the collection or a recipe's fields changed. Nothing that it writes holds a text.
"""

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demur.core.folders import write_synced
from demur.datasets.recipes.collection import (
    FOLDER,
    PLACE_FIELDS,
    as_lines,
    compress,
    key_of,
    sha256,
)
from demur.datasets.recipes.recipes import RECIPES, Recipe

ALWAYS_FROM_SOURCE = {"text", "response", "goal", "system"}
COMPRESSED_FIELDS = {"sha256", "bytes"}
"""Of an index entry: they depend on the zlib that compressed the file."""

Fields = Mapping[str, Any]


def tabulate(folder: Path, out: Path, recipes: Mapping[str, Recipe]) -> None:
    """Write the index of all sets, and the tables of those with a recipe and a licence.

    Args:
        folder: Holds `index.json`, `splits.jsonl.gz` and the sets.
        out: Is given `index.json` and `tables/`.
        recipes: Say by set which fields the source gives.
    """
    index = json.loads((folder / "index.json").read_bytes())
    places: dict[str, list[Fields]] = {}
    for place in _lines(folder / "splits.jsonl.gz"):
        places.setdefault(place["file"], []).append(place)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    entries = []
    for entry in index["datasets"]:
        name, path = entry["name"], folder / entry["file"]
        kept = {key: value for key, value in entry.items() if key not in COMPRESSED_FIELDS}
        entries.append(kept | {"content_sha256": sha256(gzip.decompress(path.read_bytes()))})
        if name in recipes and entry["licence_stated"]:
            table = table_of(_lines(path), places[entry["file"]], recipes[name])
            write_synced(out / "tables" / f"{name}.jsonl.gz", compress(as_lines(table)))
    content = {"format": index["format"], "datasets": entries}
    write_synced(out / "index.json", (json.dumps(content, indent=1) + "\n").encode())


def table_of(
    records: Sequence[Fields], places: Sequence[Fields], recipe: Recipe
) -> list[dict[str, Any]]:
    """Return the lines of a set's table: what the source does not give, and no text."""
    fields = _in_order(records)
    given = ALWAYS_FROM_SOURCE | {"id", *recipe.gives}
    rows = []
    for record, place in zip(records, places, strict=True):
        row = {"key": key_of(record, recipe.key)}
        row |= {name: record[name] for name in record if name not in given}
        row |= {"place": place["split"]}
        row |= {name: place[name] for name in PLACE_FIELDS if name in place}
        rows.append(row)
    same = {
        name: rows[0][name]
        for name in rows[0]
        if name not in ("key", *PLACE_FIELDS)
        and all(name in row and row[name] == rows[0][name] for row in rows)
    }
    head = {"fields": fields, "key": list(recipe.key), "all": same}
    return [head, *({k: v for k, v in row.items() if k not in same} for row in rows)]


def _in_order(records: Sequence[Fields]) -> list[str]:
    """Return the fields of the records; those with the most fields have them all, in order."""
    fields = max((list(record) for record in records), key=len)
    assert all(list(record) == [name for name in fields if name in record] for record in records)
    return fields


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


if __name__ == "__main__":
    tabulate(Path(sys.argv[1]), FOLDER, RECIPES)

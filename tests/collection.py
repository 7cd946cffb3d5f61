"""Collections of labelled prompts as `DEMUR_DATA` has them, made up."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.model_folder import write_lines

Fields = dict[str, object]


def rows(name: str, number: int, label: str, **more: object) -> list[Fields]:
    return [
        {"id": f"{name}-{n}", "text": f"{name} {n}", "label": label, "source": name, **more}
        for n in range(number)
    ]


def write_collection(folder: Path, sets: Mapping[str, Mapping[str, list[Fields]]]) -> Path:
    """Write sets by name, each with its rows by split, as the collection has them."""
    folder.mkdir(exist_ok=True)
    index, places = [], []
    for name, by_split in sets.items():
        file = f"{name}.jsonl"
        write_lines(folder / file, [row for of in by_split.values() for row in of])
        places += [
            {"id": row["id"], "file": file, "split": split, "small": not split.startswith("u")}
            for split, of in by_split.items()
            for row in of
        ]
        entry = {"name": name, "file": file, "kind": "mixed", "repo": "a/b", "licence": "MIT"}
        index.append({**entry, "licence_stated": True, "non_commercial": False})
    (folder / "index.json").write_text(json.dumps({"datasets": index}))
    write_lines(folder / "splits.jsonl.gz", places)
    return folder

"""What the packaged adapter's recipe takes of its prompts."""

import json
from pathlib import Path

import numpy as np

from benchmarks.build_adapter import hardest, ship
from demur.core.adapters import CONFIG, WEIGHTS
from demur.core.examples import Example, Label
from demur.core.folders import CARD, read_checked, read_manifest
from demur.core.trained import KIND, save_trained
from demur.core.types import Chat, ModelId


def example(label: Label, source: str) -> Example:
    return Example(id="x", chat=Chat.from_text("Why?"), label=label, source=source)


def test_unsafe_prompts_are_taken_where_flagged_and_safe_ones_where_nearest_to_it() -> None:
    examples = [
        example("unsafe", "a"),
        example("safe", "a"),
        example("unsafe", "a"),
        example("safe", "a"),
        example("safe", "b"),
        example("safe", "a"),
        example("safe", "b"),
    ]
    margins = np.array([0.0, -3.0, -0.1, -2.0, -9.0, -1.0, -8.0])
    assert hardest(examples, margins).tolist() == [0, 3, 5, 6]


def test_what_ships_has_a_share_of_its_strength_once(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_trained(
        folder,
        method="adapter",
        model_id=ModelId("tiny", "a", "b", "c", "d", "float32"),
        tensors={"one": np.ones(2, np.float32)},
        fields={},
        provenance={"hyper_parameters": {"alpha": 24}},
        card="# A card\n",
        tensors_file=WEIGHTS,
        files={CONFIG: b'{"r": 6, "lora_alpha": 24}'},
    )
    for _ in range(2):
        ship(folder, 0.75)
    assert json.loads((folder / CONFIG).read_text()) == {"r": 6, "lora_alpha": 18}
    found = read_manifest(folder, kind=KIND)["sha256"]
    assert all(read_checked(folder / name, expected) for name, expected in found.items())
    card = (folder / CARD).read_text()
    assert card.startswith("# A card\n")
    assert card.count("A scale of 1 is 0.75 times") == 1

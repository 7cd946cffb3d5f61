"""Trains the adapter that ships: refusals, and helpful answers to what only sounds dangerous.

It learns from demur's own sets only: every written reply, and the unsafe prompts without one, which
get refusals from the texts that ship. What it is worth behind the gate is measured by
`python -m benchmarks.responders --responders adapter:pretrained fixed_reply`.

    python -m benchmarks.build_adapter [--out FOLDER]
"""

import argparse
import json
from pathlib import Path

import demur
from benchmarks.adapters import trained_folder, training_metrics
from demur.core.examples import Example
from demur.core.folders import CARD
from demur.datasets import replies, starter, written
from demur.trainers.sft import SftTrainer

NOTES = """
## What it is for

Trained on demur's own sets alone, under Apache-2.0: refusals of unsafe prompts, and helpful
answers to prompts that only sound dangerous. It answers what the packaged detector flags. Some
unsafe prompts are answered all the same, and some safe ones refused:
`benchmarks/results/shipped_pair.md` counts them, set by set.
"""
OUT = Path(demur.__file__).parent / "pretrained" / "adapters" / "smollm2-135m-instruct"
TRAINER = SftTrainer(
    layers=range(12, 30), rank=6, alpha=24, steps=300, unsafe_share=0.65, learning_rate=1e-3
)
"""Blocks above the lowest that the packaged detector reads; the file stays below 5 MB."""


def rows() -> list[Example]:
    """Return what is learnt: prompts with a written reply, and unsafe ones without."""
    answered = replies.load("train")
    with_reply = {example.id for example in answered}
    unsafe = [
        example
        for example in (*written.load("train"), *starter.load("train"))
        if example.label == "unsafe" and example.id not in with_reply
    ]
    return [*answered, *unsafe]


def main() -> None:
    """Train the adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder")
    options = parser.parse_args()
    folder = trained_folder(TRAINER, rows(), "embedded", options.out)
    card = (folder / CARD).read_text(encoding="utf-8").partition(NOTES)[0]
    (folder / CARD).write_text(card + NOTES, encoding="utf-8")
    print(json.dumps(training_metrics(folder), indent=2))


if __name__ == "__main__":
    main()

"""Trains the adapter that ships: refusals, and answers to what only sounds dangerous.

It sees what the packaged detector flags, where safe prompts are those that sound most dangerous,
and so it learns the difference from prompts of a dangerous sound: demur's own and, of public sets
whose licence allows it, safe contrasts and direct unsafe requests. Of these it takes the unsafe
ones that are flagged and the half of the safe ones that comes nearest to it. A safe prompt learns
the model's own greedy answer, so that nothing but the difference has to be learnt; where that is a
refusal, the reply that was written for it, if one was. An unsafe prompt learns the refusal that was
written for it, or one of the texts that ship. What it is worth behind the gate is measured by
`python -m benchmarks.shipped_pair`.

    DEMUR_DATA=FOLDER python -m benchmarks.build_adapter [--out FOLDER]
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import demur
from benchmarks.arms import Arms, drawn, short_prompts, with_own_answers
from benchmarks.artifacts import trained_folder, training_metrics
from demur.core.adapters import CONFIG
from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.folders import CARD, MANIFEST, as_json, read_json, read_manifest, write_whole
from demur.core.readings import Array
from demur.core.trained import KIND
from demur.datasets import pairs, replies, starter, written
from demur.datasets.demur_data import DemurData
from demur.studies._cases import Cases
from demur.trainers.sft import SftTrainer

NOTES = """
## What it is for

Refusals of unsafe prompts, and answers to prompts that only sound dangerous. It answers what the
packaged detector flags. Some unsafe prompts are answered all the same, and some safe ones refused:
`benchmarks/results/shipped_pair.md` counts them, set by set. A scale of 1 is {strength:g} times
what was trained, which answered validation prompts best (`benchmarks/results/adapter_scale.md`).
Apache-2.0; of the public sets only prompts were used: `coconot_pref` (allenai/noncompliance, MIT),
`harmfulqa`, `dangerousqa` and `catqa_en` (declare-lab/red-instruct, Apache-2.0), `advbench` and
`tdc2023` (andyrdt/refusal_direction, Apache-2.0), `aart`
(google-research-datasets/aart-ai-safety-dataset, CC-BY-4.0), `derta_malicious` (RobustNLP/DeRTa,
MIT), `gptfuzz_questions` (sherdencooper/GPTFuzz, MIT).
"""
OUT = Path(demur.__file__).parent / "pretrained" / "adapters" / "smollm2-135m-instruct"
MAX_TOKENS = 40
"""Of an answer that the model draws. One token less is learnt, so that no end is learnt where an
answer was cut."""
TRAINER = SftTrainer(
    layers=range(12, 30),
    rank=6,
    alpha=24,
    steps=700,
    unsafe_share=0.4,
    learning_rate=1e-3,
    max_reply_tokens=MAX_TOKENS - 1,
)
"""Blocks above the lowest that the packaged detector reads; the file stays below 5 MB."""
STRENGTH = 0.875
"""Of what was trained, that ships as scale 1: the best one by `benchmarks.adapter_scale`."""
CONTRASTS = ("coconot_pref",)
REQUESTS = (
    "advbench", "tdc2023", "harmfulqa", "dangerousqa", "catqa_en", "aart", "derta_malicious",
    "gptfuzz_questions",
)  # fmt: skip
"""Public sets of safe prompts of a dangerous sound, and of plain unsafe ones."""
OF_EACH = 150
"""Unsafe prompts of a public set, at most."""


def with_reply() -> list[Example]:
    """Return demur's own prompts with the replies that were written for them."""
    return [*replies.load("train"), *(of for of in pairs.load("train") if of.safe_response)]


def prompts(data: DemurData) -> list[Example]:
    """Return unsafe prompts, and English safe ones of a dangerous sound.

    Raises:
        DataError: A set may not be used for what ships.
    """
    own = (*written.load("train"), *starter.load("train"), *pairs.load("train"))
    found = [of for of in own if of.label == "unsafe" or sounds_dangerous(of)]
    for name, label in (*((of, "safe") for of in CONTRASTS), *((of, "unsafe") for of in REQUESTS)):
        if not data.sets[name].may_ship:
            raise DataError(f"{name} is for measuring only: leave it out")
        public = short_prompts(data, name, "train", label)
        found += public if label == "safe" else drawn(public, min(OF_EACH, len(public)))
    return found


def sounds_dangerous(example: Example) -> bool:
    """Tell whether a safe prompt is an English one of a dangerous sound."""
    return example.is_look_alike and example.language in (None, "en")


def hardest(examples: Sequence[Example], margins: Array) -> Array:
    """Return the rows, in order, of what a gate is most likely to hand over.

    Args:
        examples: Labelled prompts.
        margins: How far each one's score is over the gate's threshold, [prompt].

    Returns:
        Of unsafe prompts those that are flagged; of safe ones that half of each source that comes
        nearest to it.
    """
    unsafe = np.array([example.label == "unsafe" for example in examples])
    source = np.array([example.source for example in examples])
    kept = unsafe & (margins >= 0)
    for name in sorted(set(source[~unsafe].tolist())):
        rows = np.flatnonzero(~unsafe & (source == name))
        kept[rows[np.argsort(-margins[rows])][: -(-len(rows) // 2)]] = True
    found: Array = np.flatnonzero(kept)
    return found


def rows() -> list[Example]:
    """Return what is learnt: safe prompts with an answer, and unsafe ones."""
    every = tuple(prompts(DemurData()))
    role = np.array(["unsafe" if of.label == "unsafe" else "look_alike" for of in every])
    arms = Arms("embedded", Cases(every, role), max_tokens=MAX_TOKENS)
    kept = [every[int(row)] for row in hardest(every, arms.margins())]
    answered = with_own_answers(arms, [of for of in kept if of.label == "safe"])
    by_itself, replied = {of.id for of in answered}, {of.id: of for of in with_reply()}
    others = [replied.get(of.id, of) for of in kept if of.id not in by_itself]
    return [*answered, *(of for of in others if of.label == "unsafe" or of.safe_response)]


def ship(folder: Path, strength: float) -> None:
    """Let a trained adapter's scale of 1 stand for a share of its strength, and finish its card.

    Args:
        folder: Of the adapter, which is written anew.
        strength: Over 0; nothing changes if it has been set before.
    """
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = read_manifest(folder, kind=KIND)
    alpha = manifest["provenance"]["hyper_parameters"]["alpha"]
    files[CONFIG] = as_json({**read_json(folder / CONFIG), "lora_alpha": alpha * strength})
    manifest["sha256"][CONFIG] = hashlib.sha256(files[CONFIG]).hexdigest()
    card = files[CARD].decode().partition("\n## What it is for")[0]
    files[CARD] = (card + NOTES.format(strength=strength)).encode()
    write_whole(folder, {**files, MANIFEST: as_json(manifest)})


def main() -> None:
    """Train the adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder")
    options = parser.parse_args()
    folder = trained_folder(TRAINER, rows(), "embedded", options.out)
    ship(folder, STRENGTH)
    print(json.dumps(training_metrics(folder), indent=2))


if __name__ == "__main__":
    main()

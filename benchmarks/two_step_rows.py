"""What the comparison of two-step answering trains on, and the cells of prompts it measures on.

Trained on, by every method alike: questions of gptfuzz_responses (MIT) with replies that people
labelled harmful, and the packaged prompts with replies. Plain rows are these; wrapped rows are the
same, with every unsafe prompt and every second safe one inside one of six framings of our own.
Safe ones are wrapped too, or an adapter would learn to refuse framings.

A cell is what a rate goes by. `plain` has unsafe prompts of other sets; `wrapped` the same inside
the six framings, `other framings` inside four that no adapter has seen. Then come attacks that
others made, other languages, and safe prompts, set by set. Nothing was fitted or trained on any of
them; sets without a licence for commercial use are measured on only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.arms import drawn, drawn_sets, short_prompts
from benchmarks.derta_rows import with_both_replies
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat
from demur.datasets import replies
from demur.datasets.demur_data import DemurData
from demur.studies._cases import Cases, role_of
from demur.studies._texts import filled, study_texts

Style = Literal["plain", "wrapped"]
"""Of the rows that an adapter learns from; also the name of the cell that is made alike."""
Kind = Literal["plain", "wrapped", "attack", "language", "safe"]
UNSAFE: tuple[Kind, ...] = ("plain", "wrapped", "attack", "language")

QUESTIONS, REPLIES = "gptfuzz_questions", "gptfuzz_responses"
"""The first has the split that keeps evaluation texts out; the second has the replies."""
NUM_FRAMINGS = 6
"""Of those that ship, in order, that wrapped rows are made with."""
PLAIN: Mapping[str, int] = {
    "strongreject": 80,
    "harmbench": 60,
    "malicious_instruct": 40,
    "xstest": 40,
}
ATTACKS: Mapping[str, int] = {
    "jbb_artifacts": 200,
    "tense_attacks": 200,
    "derta_attacks": 200,
    "latent_jailbreak": 200,
}
LANGUAGES: Mapping[str, tuple[str, int]] = {
    "multijail": ("test_ood", 200),
    "catqa_vi": ("test_ood", 200),
    "catqa_zh": ("test_id", 200),
}
"""By set: split and number; catqa_zh has 46 that no detector was fitted on."""
SAFE: Mapping[str, tuple[str, int]] = {
    "xstest": ("test_ood", 200),
    "oktest": ("test_ood", 200),
    "coconot_eval": ("test_ood", 200),
    "alpaca_eval": ("utility", 200),
}


def framings(style: Literal["seen", "unseen"]) -> list[str]:
    """Return templates that an attacker would use: those of wrapped rows, or all others."""
    every = list(study_texts().framings.values())
    return every[:NUM_FRAMINGS] if style == "seen" else every[NUM_FRAMINGS:]


def wrapped(examples: Sequence[Example], templates: Sequence[str]) -> list[Example]:
    """Return prompts inside templates, one after the other; each stays in its group."""
    return [
        replace(
            example,
            id=f"{example.id}:{number % len(templates)}",
            chat=Chat.from_text(
                filled(templates[number % len(templates)], example.chat.last_user_text)
            ),
            group=example.group_key,
        )
        for number, example in enumerate(examples)
    ]


def to_train(data: DemurData, style: Style) -> list[Example]:
    """Return what every adapter of a style learns from.

    Args:
        data: The collection.
        style: `wrapped` puts the same prompts inside framings.
    """
    questions = {of.chat.last_user_text for of in data.load(QUESTIONS, ("train",))}
    written = [of for of in replies.load("train") if of.language in (None, "en")]
    unsafe = [of for of in with_both_replies(data) if of.chat.last_user_text in questions]
    unsafe += [of for of in written if of.label == "unsafe"]
    safe = [of for of in written if of.label == "safe"]
    if style == "wrapped":
        unsafe = wrapped(unsafe, framings("seen"))
        safe = [*safe[::2], *wrapped(safe[1::2], framings("seen"))]
    return [*unsafe, *safe]


@dataclass(frozen=True)
class Cells:
    """All prompts that are measured on, with the cell of each."""

    cases: Cases
    cell: Array
    """[prompt], names."""
    kinds: Mapping[str, Kind]
    """Of the cells, by name, in order."""

    def rows(self, name: str) -> Array:
        """Return the rows of a cell."""
        return np.flatnonzero(self.cell == name)

    def names(self, *kinds: Kind) -> list[str]:
        """Return the cells of some kinds."""
        return [name for name, kind in self.kinds.items() if kind in kinds]


def cells_of(data: DemurData, *, share: float = 1.0) -> Cells:
    """Return the prompts that are measured on.

    Args:
        data: The collection.
        share: Of the number of each set, over 0; one prompt a set stays.
    """
    plain = drawn_sets(data, PLAIN, "test_ood", "unsafe", share=share)
    found: dict[str, tuple[Kind, list[Example]]] = {
        "plain": ("plain", plain),
        "wrapped": ("wrapped", wrapped(plain, framings("seen"))),
        "other framings": ("wrapped", wrapped(plain, framings("unseen"))),
    }
    for name, number in ATTACKS.items():
        unsafe = short_prompts(data, name, "test_ood", "unsafe")
        found[name] = ("attack", drawn(unsafe, number, share=share))
    for name, (split, number) in LANGUAGES.items():
        unsafe = [of for of in short_prompts(data, name, split, "unsafe") if of.language != "en"]
        found[name] = ("language", drawn(unsafe, number, share=share))
    for name, (split, number) in SAFE.items():
        safe = short_prompts(data, name, split, "safe")
        found[f"{name}, safe"] = ("safe", drawn(safe, number, share=share))
    examples = [example for _, of_cell in found.values() for example in of_cell]
    names = [name for name, (_, of_cell) in found.items() for _ in of_cell]
    roles = np.array([role_of(example) for example in examples], dtype=str)
    return Cells(
        Cases(tuple(examples), roles),
        np.array(names, dtype=str),
        {name: kind for name, (kind, _) in found.items()},
    )

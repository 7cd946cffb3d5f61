"""The prompts on which responders are compared, and their replies, drawn once for all benchmarks.

None of the prompts was fitted, trained or calibrated on: they are of the collection's sets that are
kept for tests. They have been looked at before, and count as development.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from benchmarks.words import LABELLERS
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat, Dtype
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.guard.calibrated import CalibratedDetector
from demur.guard.kept_replies import KeptReply
from demur.guard.loading import load_detector
from demur.studies._answers import Answers
from demur.studies._arms import Arm, arm_rows
from demur.studies._cases import ROLES, Cases, Role
from demur.studies._outcomes import Labelling, Outcomes
from demur.studies._study import Row

Item = TypeVar("Item")

BASE = "base"
"""The arm of the model by itself."""
MAX_CHARACTERS = 1200
NOT_REQUESTS = frozenset({"copyright"})
"""Categories of unsafe prompts that are no hazard in the usual sense."""

CHOSEN: Mapping[Role, Mapping[str, tuple[str, str, int]]] = {
    "unsafe": {
        "strongreject": ("test_ood", "unsafe", 40),
        "harmbench": ("test_ood", "unsafe", 30),
        "jailbreakbench": ("test_ood", "unsafe", 20),
        "malicious_instruct": ("test_ood", "unsafe", 20),
        "xstest": ("test_ood", "unsafe", 20),
        "jbb_artifacts": ("test_ood", "unsafe", 20),
    },
    "look_alike": {
        "xstest": ("test_ood", "safe", 75),
        "oktest": ("test_ood", "safe", 35),
        "coconot_eval": ("test_ood", "safe", 40),
    },
    "ordinary": {
        "alpaca_eval": ("utility", "safe", 75),
        "truthfulqa": ("utility", "safe", 25),
        "gsm8k_test": ("utility", "safe", 20),
        "mmlu_500": ("utility", "safe", 15),
        "humaneval": ("utility", "safe", 15),
    },
}
"""By role and set: split, label and number of prompts; 150 a role."""


def tell(news: str) -> None:
    """Say how far it is, on standard error."""
    sys.stderr.write(f"{news}\n")


def held_out_cases(
    data: DemurData, *, share: float = 1.0, roles: Collection[Role] = ROLES, seed: int = 0
) -> Cases:
    """Return the prompts in their roles.

    Args:
        data: The collection.
        share: Of the number of each set, over 0; more than 1 takes more, as far as the set goes.
        roles: Of which prompts are taken.
        seed: Of the draw.
    """
    examples: list[Example] = []
    of: list[Role] = []
    for role in (role for role in CHOSEN if role in roles):
        for name, (split, label, number) in CHOSEN[role].items():
            found = short_prompts(data, name, split, label)
            chosen = drawn(found, number, share=share, seed=seed)
            examples += chosen
            of += [role] * len(chosen)
    return Cases(tuple(examples), np.array(of, dtype=str))


def short_prompts(data: DemurData, name: str, split: str, label: str) -> list[Example]:
    """Return the requests of one set, split and label that are not too long to be answered."""
    return [
        example
        for example in data.load(name, (split,))
        if example.label == label
        and len(example.chat.last_user_text) <= MAX_CHARACTERS
        and example.category not in NOT_REQUESTS
    ]


def drawn(found: Sequence[Item], number: int, *, share: float = 1.0, seed: int = 0) -> list[Item]:
    """Return a share of a number of items, one at least, in the order of a draw."""
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[row] for row in order[: max(1, round(share * number))]]


def drawn_sets(
    data: DemurData, numbers: Mapping[str, int], split: str, label: str, *, share: float = 1.0
) -> list[Example]:
    """Return prompts of several sets that are not too long to be answered, set by set.

    Args:
        data: The collection.
        numbers: Of prompts, by set.
        split: Of all sets.
        label: Of all prompts.
        share: Of each number, over 0.
    """
    return [
        example
        for name, number in numbers.items()
        for example in drawn(short_prompts(data, name, split, label), number, share=share)
    ]


@dataclass
class Arms:
    """A model's replies to the prompts, by itself and under responders, with their outcomes.

    Args:
        model: As `--model` takes it.
        cases: The prompts.
        detector: The gate: an artifact's folder, or `pretrained`.
        max_tokens: Of a reply.
        labelling: Says what became of a reply.
        dtype: Of the weights.
        max_batch: Rows that decode together.
        fpr: Of the gate's threshold; None takes its own.
    """

    model: str
    cases: Cases
    detector: str = "pretrained"
    max_tokens: int = 48
    labelling: Labelling = field(default_factory=lambda: Labelling(LABELLERS))
    dtype: Dtype = "auto"
    max_batch: int = 48
    fpr: float | None = None

    def __post_init__(self) -> None:
        """Load the model and the gate."""
        self.engine = TransformersEngine.load(
            self.model,
            dtype=self.dtype,
            max_batch=self.max_batch,
        )
        self.gate: CalibratedDetector = load_detector(self.detector, self.engine, fpr=self.fpr)
        self.answers = Answers(self.engine, self.gate, self.max_tokens, tell)

    @property
    def chats(self) -> list[Chat]:
        """The prompts, in order."""
        return [example.chat for example in self.cases.examples]

    def base_replies(self, rows: Sequence[int] | Array | None = None) -> list[KeptReply]:
        """Return the model's own replies to the prompts in some rows, or to all."""
        return self.answers.base(self._chats(rows))

    def replies(self, responder: str, rows: Sequence[int] | Array | None = None) -> list[KeptReply]:
        """Return the replies with a responder switched on for every prompt."""
        return self.answers.always(responder, self._chats(rows))

    def base(self) -> Outcomes:
        """Return what became of the model's own replies."""
        return self.labelling.label(self.chats, self.base_replies())

    def under(self, responder: str) -> Outcomes:
        """Return what became of the replies with a responder switched on for every prompt."""
        return self.labelling.label(self.chats, self.replies(responder))

    def margins(self) -> Array:
        """Return how far each prompt's score is over the gate's threshold, [prompt]."""
        return self.answers.margins(self.chats)

    def _chats(self, rows: Sequence[int] | Array | None) -> list[Chat]:
        chats = self.chats
        return chats if rows is None else [chats[int(row)] for row in rows]


def always_on_rows(base: Outcomes, outcomes: Mapping[str, Outcomes], cases: Cases) -> list[Row]:
    """Return the rates of the model and of adapters that are always on, one row an arm and role.

    Args:
        base: Of the model by itself, whose arm comes first.
        outcomes: Under each adapter, by its name.
        cases: The prompts.
    """
    every = np.ones(len(cases.examples), dtype=bool)
    arms = [Arm(BASE, base), *(Arm(name, of, every) for name, of in outcomes.items())]
    return [row for arm in arms for row in arm_rows("adapter", arm, base, cases)]


def with_own_answers(arms: Arms, examples: Sequence[Example]) -> list[Example]:
    """Return safe prompts with the model's own answers, but for those it refuses.

    Args:
        arms: Of the model.
        examples: The prompts.
    """
    chats = [example.chat for example in examples]
    replies = arms.answers.base(chats)
    outcomes = arms.labelling.label(chats, replies)
    refused = (outcomes.outcome == "refused") | (outcomes.second == "refused")
    return [
        replace(example, safe_response=reply.text)
        for example, reply, left_out in zip(
            examples, replies, refused | outcomes.collapsed, strict=True
        )
        if reply.text.strip() and not left_out
    ]

"""Which replies the reply detector of the benchmarks is fitted, calibrated and tested on.

Labelled replies are those of public sets: several models' answers to unsafe questions, complied
with or refused, and to safe ones. Ordinary replies are the model's own to benign prompts, drawn
without a guard; they count as safe.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.rows import Selection
from demur.core.examples import Example
from demur.core.protocols import Engine, Stream
from demur.core.reads import Read, by_token
from demur.core.types import Sampling
from demur.datasets.demur_data import DemurData
from demur.workflows import capture as capturing
from demur.workflows.capture import Capturer
from demur.workflows.fit import hold_out
from demur.workflows.replies import OwnReplies, labelled_replies, to_be_answered

LABELLED_TRAIN, LABELLED_TEST = "gptfuzz_responses", "xstest_completions"
REPLIES_A_QUESTION = 10
"""Of each label: the set has 64 replies a question, which say little more."""
LONGEST_PROMPT = 1500
"""Characters of an ordinary prompt: a reply is judged here, no passage before it."""
LEARNT_TOKENS, JUDGED_TOKENS = 128, 512
"""Most tokens of an ordinary reply: to learn from, and to calibrate on and be tested with."""
PROMPTS_A_SET = {"train": 30, "val": 42, "utility": 43}
"""Prompts of each set that are answered, by split."""
CALIBRATED_ON = (
    "the model's own replies of up to {tokens} tokens to benign validation prompts of public sets, "
    "and refusals and harmless answers to unsafe questions, each by the highest score that it ever "
    "has"
)

Report = Callable[[int, int], None]
"""Takes how many ordinary replies there are, and how many there will be."""


@dataclass(frozen=True)
class ReplyRows:
    """Draws the replies.

    Args:
        data: The collection.
        engine: Draws the ordinary replies.
        report: Called after each ordinary reply.
        share: Of all replies, for a trial.
        judged_tokens: Most tokens of an ordinary reply to calibrate on and be tested with.
        seed: Of all draws.
    """

    data: DemurData
    engine: Engine
    report: Report
    share: float = 1.0
    judged_tokens: int = JUDGED_TOKENS
    seed: int = 0

    def to_fit(self) -> Selection:
        """Return what a reply detector that ships learns from, and what it is calibrated on."""
        train, val = self.labelled_train()
        train += self.ordinary("train", max_tokens=LEARNT_TOKENS)
        val += self.ordinary("val", max_tokens=self.judged_tokens)
        return Selection("reply", train, val, CALIBRATED_ON.format(tokens=self.judged_tokens))

    def labelled_train(self) -> tuple[list[Example], list[Example]]:
        """Return labelled replies that a release may learn from, and those of held-out questions.

        A few replies of each label are drawn a question.
        """
        rows = labelled_replies(self.data.load(LABELLED_TRAIN, ("responses_train",)))
        kept: list[Example] = []
        counts: Counter[tuple[str, str | None]] = Counter()
        for place in np.random.default_rng(self.seed).permutation(len(rows)):
            key = (rows[place].group_key, rows[place].label)
            counts[key] += 1
            if counts[key] <= math.ceil(self.share * REPLIES_A_QUESTION):
                kept.append(rows[place])
        return hold_out(kept, seed=self.seed)

    def labelled_test(self) -> list[Example]:
        """Return the prompts of the test set with their labelled replies; `label` is a prompt's."""
        rows = [
            row
            for row in self.data.load(LABELLED_TEST, ("responses_test",))
            if row.response_label is not None
        ]
        order = np.random.default_rng(self.seed).permutation(len(rows))
        return [rows[place] for place in order[: round(self.share * len(rows))]]

    def ordinary(self, split: str, *, max_tokens: int = JUDGED_TOKENS) -> list[Example]:
        """Return what the model answers to benign prompts; the user's cache keeps it.

        Args:
            split: `train` and `val` are of sets that a release may learn from; `utility` of others.
            max_tokens: Of a reply.
        """
        sampling = Sampling(max_tokens=max_tokens, temperature=0.7, top_p=0.95)
        prompts = to_be_answered(self._prompts(split))
        rows = OwnReplies(self.engine, sampling).fill_in(prompts, report=self.report)
        return [replace(row, source=f"own replies: {row.source}") for row in rows]

    def _prompts(self, split: str) -> list[Example]:
        """Return as many benign prompts of each set; a larger share begins with a smaller one."""
        kind = "utility" if split == "utility" else "benign"
        drawn: list[Example] = []
        for name, info in self.data.sets.items():
            if info.kind == kind and (info.may_ship or split == "utility"):
                rows = [
                    row
                    for row in self.data.load(name, (split,))
                    if len(row.chat.last_user_text) <= LONGEST_PROMPT
                ]
                order = np.random.default_rng(self.seed).permutation(len(rows))
                num_prompts = round(self.share * PROMPTS_A_SET[split])
                drawn += [rows[place] for place in order[:num_prompts]]
        return drawn


@dataclass(frozen=True)
class ReplyCapturer:
    """Reads replies for a fit.

    Args:
        capturer: Of the model.
        report: Called after each batch.
    """

    capturer: Capturer
    report: capturing.Report = capturing.ignore_progress

    def __call__(self, examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        """Return the readings of replies, from disk where they were read before."""
        chats = [example.chat for example in examples]
        return self.capturer.parts(chats, reads, replies=_texts(examples), report=self.report)

    def follow(self, examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        """Return the readings of replies by token, of which nothing is kept."""
        chats, replies = [example.chat for example in examples], _texts(examples)
        return self.capturer.passing(chats, by_token(reads), replies=replies, report=self.report)


def _texts(examples: Sequence[Example]) -> list[str]:
    return [str(example.response) for example in examples]

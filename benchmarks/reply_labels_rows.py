"""Replies whose labels are known, and which of them a labeller may learn from.

Two public sets: in `xstest_completions` two annotators say of five models' replies whether each
complied, refused or refused in part; in `gptfuzz_responses` people say whether a jailbreak worked.
Both are parted by groups of requests, by a hash of the group's name, so that no request stands on
both sides. A partial refusal counts as a refusal, as in XSTest's own rates. Replies that were
written for demur are what they were written as; trained responders learn to say them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from demur.core.outcomes import Answered, Outcome
from demur.core.readings import Array
from demur.core.validation import Asked
from demur.datasets import pairs, replies
from demur.datasets.demur_data import DemurData
from demur.datasets.rows import read_objects
from demur.trainers._refusals import texts

XSTEST, GPTFUZZ, WRITTEN = "xstest_completions", "gptfuzz_responses", "written for demur"
Part = Literal["fit", "development", "held out"]

_TENTHS: dict[str, tuple[Part, ...]] = {
    XSTEST: ("development", "held out") * 5,
    GPTFUZZ: ("fit",) * 5 + ("development",) * 2 + ("held out",) * 3,
}
"""The part that each tenth of the groups goes to."""
_XSTEST_KINDS = {
    "1_full_compliance": "full compliance",
    "2_full_refusal": "full refusal",
    "3_partial_refusal": "partial refusal",
}
_GPTFUZZ_KINDS = {"unsafe": "jailbreak worked", "safe": "jailbreak failed"}
REFUSAL, ANSWER = "written refusal", "written answer"
_COMPLIED = {"full compliance", "jailbreak worked", ANSWER}
_SENTENCE = re.compile(r"(?<=[.!?])\s")


@dataclass(frozen=True)
class LabelledReply:
    """A reply, and what people said of it, or what it was written as."""

    answered: Answered
    asked: Asked
    kind: str
    """In the words of its set."""
    group: str
    source: str
    model: str
    """That replied; empty where the set does not say."""
    part: Part
    are_sure: bool = True
    """The annotators agreed, or there was one label only."""

    @property
    def human(self) -> Outcome:
        """What is known of it, as an outcome."""
        return "complied" if self.kind in _COMPLIED else "refused"


def labelled(data: DemurData) -> list[LabelledReply]:
    """Return all labelled replies of the two sets that no other test set repeats."""
    splits = {XSTEST: "responses_test", GPTFUZZ: "responses_train"}
    found: list[LabelledReply] = []
    for name, split in splits.items():
        kept = {example.id for example in data.load(name, (split,))}
        path = data.folder / data.sets[name].file
        found += (_reply(name, row) for row in _rows(path) if row["id"] in kept)
    return found


def _rows(path: Any) -> Iterator[dict[str, Any]]:
    return (fields for _, fields in read_objects(path))


def _reply(name: str, row: dict[str, Any]) -> LabelledReply:
    meta = row.get("meta") or {}
    kind = (
        _XSTEST_KINDS[meta["human_label"]]
        if name == XSTEST
        else _GPTFUZZ_KINDS[row["response_label"]]
    )
    group = str(row["group"])
    return LabelledReply(
        answered=Answered.from_text(row["text"], row["response"]),
        asked=row["label"],
        kind=kind,
        group=group,
        source=name,
        model=str(meta.get("model", "")),
        part=_TENTHS[name][_tenth(group)],
        are_sure=meta.get("annotators_agree", "TRUE") == "TRUE",
    )


def written_replies() -> list[LabelledReply]:
    """Return replies that were written for demur: to prompts, and refusals that suit any.

    Each answer comes once more behind a refusal's first sentence: it complies all the same.
    """
    refusals = [text for of_language in texts().values() for text in of_language]
    found = [
        LabelledReply(Answered.from_text("?", text), "unsafe", REFUSAL, text, WRITTEN, "", "fit")
        for text in refusals
    ]
    parts: Mapping[Literal["train", "val"], Part] = {"train": "fit", "val": "development"}
    for split, part in parts.items():
        to_prompts = [
            LabelledReply(
                answered=Answered(example.chat, example.safe_response),
                asked="unsafe" if example.label == "unsafe" else "safe",
                kind=REFUSAL if example.label == "unsafe" else ANSWER,
                group=example.group_key,
                source=WRITTEN,
                model="",
                part=part,
            )
            for example in (*replies.load(split), *pairs.load(split))
            if example.safe_response
        ]
        found += [*to_prompts, *_behind_refusals(to_prompts)]
    return found


def _behind_refusals(written: Sequence[LabelledReply]) -> Iterator[LabelledReply]:
    """Yield each answer behind the first sentence of one of the refusals."""
    openings = [_SENTENCE.split(of.answered.reply, 1)[0] for of in written if of.kind == REFUSAL]
    answers = [of for of in written if of.kind == ANSWER]
    drawn = np.random.default_rng(0).integers(len(openings), size=len(answers)).tolist()
    for of, row in zip(answers, drawn, strict=True):
        reply = f"{openings[row]} {of.answered.reply}"
        yield replace(of, answered=Answered(of.answered.chat, reply))


def _tenth(group: str) -> int:
    return int(hashlib.sha256(f"reply labels {group}".encode()).hexdigest(), 16) % 10


def chosen(replies: Sequence[LabelledReply], source: str, *parts: Part) -> list[LabelledReply]:
    """Return the replies of a set that stand in some parts."""
    return [reply for reply in replies if reply.source == source and reply.part in parts]


def answers_of(replies: Sequence[LabelledReply]) -> list[Answered]:
    """Return the chats with their replies."""
    return [reply.answered for reply in replies]


def complied(replies: Sequence[LabelledReply]) -> Array:
    """Return which replies complied, [reply]."""
    return np.array([reply.human == "complied" for reply in replies])


def groups_of(replies: Sequence[LabelledReply]) -> Array:
    """Return the group of each reply, [reply]."""
    return np.array([reply.group for reply in replies])

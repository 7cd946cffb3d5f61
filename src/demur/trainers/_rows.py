"""Rows that adapters are trained on: each has a type, and its labels must be what the type allows.

helpful          a safe prompt, answered: the answer is learnt
refusal          an unsafe prompt, refused: the refusal is learnt
prefix_refusal   an unsafe prompt, the beginning of a harmful reply, a refusal: this alone is learnt
transition       an unsafe prompt with a harmful reply: in place of its tokens a refusal's first one
chosen           the better reply of a pair, which is learnt
rejected         the worse reply of a pair, whose likelihood is lowered

Harmful text is never learnt: a row in which it would be, or whose type is lost, cannot be made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from demur.core.errors import DataError
from demur.modeling.labelled import IGNORE

Kind = Literal["helpful", "refusal", "prefix_refusal", "transition", "chosen", "rejected"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Row:
    """Tokens with labels."""

    kind: Kind
    token_ids: tuple[int, ...]
    """What is read."""
    labels: tuple[int, ...]
    """For each token that is read the one to follow it, or `IGNORE`."""
    harmful: range = range(0)
    """Which tokens, of those that are read and of the one after the last, are harmful text."""
    words: frozenset[int] = frozenset()
    """What alone may be the label of a transition."""

    def __post_init__(self) -> None:
        """Refuse labels that the row's type does not allow.

        Raises:
            DataError: They are not allowed, or there is no such type.
        """
        if self.kind not in KINDS:
            raise DataError(
                f"a row has the type {self.kind!r}: expected one of {KINDS}; without its type it "
                "would be trained on as if its reply were wanted"
            )
        if len(self.labels) != len(self.token_ids):
            raise DataError(
                f"a {self.kind} row has {len(self.token_ids)} tokens and {len(self.labels)} "
                "labels: expected one for each"
            )
        if self.num_labels == 0:
            raise DataError(f"a {self.kind} row has no label: there is nothing to learn from it")
        if self.kind == "transition":
            self._require_words()
        elif self.kind != "rejected":
            self._require_harmless()

    @property
    def num_labels(self) -> int:
        """At how many positions something is learnt."""
        return sum(label != IGNORE for label in self.labels)

    def _require_words(self) -> None:
        others = {label for label in self.labels if label != IGNORE} - self.words
        if others:
            raise DataError(
                f"a transition row has {len(others)} labels that are not a refusal's first token: "
                "it would be trained on harmful text"
            )

    def _require_harmless(self) -> None:
        learnt = [
            place + 1
            for place, label in enumerate(self.labels)
            if label != IGNORE and place + 1 in self.harmful
        ]
        if learnt:
            raise DataError(
                f"a {self.kind} row has labels within harmful text, at {len(learnt)} positions: it "
                "would be trained on harmful text"
            )


@dataclass(frozen=True)
class Said:
    """A prompt with its replies, as token ids; each reply was split into tokens by itself."""

    prompt: tuple[int, ...]
    """Rendered, the generation prompt included."""
    is_unsafe: bool
    safe: tuple[int, ...] = ()
    """The wanted reply with the token that ends it, unless it is cut; empty if there is none."""
    within: tuple[int, ...] = ()
    """The same as it is said within a text: after a blank."""
    harmful: tuple[int, ...] = ()
    """Without an end."""
    rejected: tuple[int, ...] = ()
    """The unwanted reply of a pair, with its end unless it is cut."""

    def reply(self) -> Row:
        """Return the row in which the wanted reply is learnt."""
        kind: Kind = "refusal" if self.is_unsafe else "helpful"
        return Row(kind, *_learnt(self.prompt, self.safe))

    def pair(self) -> "Rows":
        """Return the rows of the wanted reply and of the unwanted one."""
        return Row("chosen", *_learnt(self.prompt, self.safe)), self.unwanted()

    def unwanted(self) -> Row:
        """Return the row of the rejected reply."""
        harmful = range(len(self.prompt), len(self.prompt) + len(self.rejected))
        ids, labels = _learnt(self.prompt, self.rejected)
        return Row("rejected", ids, labels, harmful if self.is_unsafe else range(0))

    def prefix_refusal(self, length: int) -> Row:
        """Return the row of a refusal after the first tokens of the harmful reply.

        Args:
            length: How many tokens of it are read; with none the row is a plain refusal.
        """
        if length == 0:
            return self.reply()
        read = (*self.prompt, *self.harmful[:length])
        ids, labels = _learnt(read, self.within)
        return Row("prefix_refusal", ids, labels, range(len(self.prompt), len(read)))

    def transition(self, words: "Words", kept: Sequence[int]) -> Row:
        """Return the row with a word of refusal at some positions of the harmful reply.

        Args:
            words: The refusal's first token.
            kept: Which of the harmful reply's tokens have one in their place, ascending.
        """
        first = len(self.prompt)
        labels = [IGNORE] * (first + kept[-1])
        for place in kept:
            labels[first + place - 1] = words.at(place)
        read = (*self.prompt, *self.harmful)[: len(labels)]
        harmful = range(first, first + len(self.harmful))
        return Row("transition", read, tuple(labels), harmful, frozenset({*words.both}))


@dataclass(frozen=True)
class Words:
    """The token with which a refusal begins."""

    opening: int
    """At the start of a reply."""
    within: int
    """Within a text, where it stands after a blank."""

    @property
    def both(self) -> tuple[int, int]:
        """Both of them."""
        return self.opening, self.within

    def at(self, place: int) -> int:
        """Return the token in the place of a reply's token, counted from 0."""
        return self.within if place else self.opening


Rows = tuple[Row, ...]
"""What is learnt from together: one row, or the two of a pair, the chosen one first."""
Item = Callable[[np.random.Generator], Rows]
"""Makes the rows of one example; what is left to chance is drawn anew at each visit."""


def constant(*rows: Row) -> Item:
    """Return an item in which nothing is left to chance."""
    return lambda _generator: rows


def _learnt(
    read: tuple[int, ...], reply: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens and labels of a row in which a reply is learnt after what is read."""
    return (*read, *reply[:-1]), (*[IGNORE] * (len(read) - 1), *reply)

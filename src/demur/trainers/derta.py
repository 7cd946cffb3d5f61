"""DeRTa: learns to refuse at any point of a reply, also after it has begun to comply.

An unsafe prompt with a harmful reply gives two rows. In one, a refusal is learnt after the first
tokens of that reply; in the other, at positions all over the reply, the first word of a refusal is
learnt in place of the token that follows. Nothing of the harmful reply itself is ever learnt.

Paper: Yuan et al., Refuse Whenever You Feel Unsafe (2024), arXiv 2407.09121: L1 = -log P(r | q,
h_<k) with k drawn anew, and reinforced transition optimisation, L2 = -sum_t log P(sorry | q, h_<t).

Differs: k counts tokens in place of words. Of the transition's labels 80% are dropped, each visit
others, where the released code drops 95% for all weights and none for adapters; they are drawn
among the reply's positions alone, and one at least is kept. Within a text the word is the token
that follows a blank, at its start the one without. After a harmful beginning every refusal starts
with the word, which is put before it where it does not: the paper's refusals do by themselves, and
a model that has learnt the word alone says nothing but the word. Where a prompt has no harmful
reply, a plain refusal is learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.modeling.load import LoadedModel
from demur.trainers._adapter import AdapterTrainer
from demur.trainers._rows import Item, Rows, Said, Words, constant
from demur.trainers._said import after_blank, words_of
from demur.trainers._tuning import Items

__all__ = ["DertaTrainer"]

NEEDS = ("peft",)

RowTypes = Literal["both", "prefix", "transition"]


@dataclass
class DertaTrainer(AdapterTrainer):
    """Learns refusals from everywhere: the mean of L1, L2 and the answers' loss over all labels."""

    rows: RowTypes = "both"
    """`both` is a row of each type a harmful reply; the paper's ablations are `prefix`, two rows of
    a refusal after harmful text, and `transition`, one of these and a plain refusal."""
    drop: float = 0.8
    """Share of a transition's labels that is dropped, 0 or more and below 1."""
    plain_every: int = 3
    """Of the prefix rows each such one has no prefix, 1 or more; the paper's 3."""
    word: str = "Sorry"
    """Its first token is what a transition learns; the paper's `Sorry`."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.rows not in get_args(RowTypes):
            raise ConfigError(f"rows is {self.rows!r}: expected one of {get_args(RowTypes)}")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop is {self.drop}: expected 0 or more and below 1")
        if self.plain_every < 1:
            raise ConfigError(f"plain_every is {self.plain_every}: expected 1 or more")
        if not self.word.strip():
            raise ConfigError("word is empty: give the word with which refusals begin")

    def require(self, said: Sequence[Said]) -> None:
        """Refuse examples without a harmful reply.

        Raises:
            DataError: There is none.
        """
        if not any(of.harmful for of in said):
            raise DataError(
                f"none of {len(said)} examples has a harmful_response: DeRTa learns to stop one; "
                "give unsafe prompts with both a safe_response and a harmful_response"
            )

    def items(self, loaded: LoadedModel, said: Sequence[Said]) -> Items:
        """Return two rows for each harmful reply, and one for each other prompt with a reply."""
        word, words = self.word.strip(), words_of(loaded, self.word)
        lead, start = (
            tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (after_blank(f"{word}."), after_blank(word))
        )
        with_harm = [
            of if of.within[: len(start)] == start else replace(of, within=(*lead, *of.within))
            for of in said
            if of.harmful
        ]
        unsafe: list[Item] = [
            item for row, of in enumerate(with_harm) for item in self._items(row, of, words)
        ]
        unsafe += [constant(of.reply()) for of in said if of.is_unsafe and not of.harmful]
        return Items(unsafe, [constant(of.reply()) for of in said if not of.is_unsafe and of.safe])

    def _items(self, row: int, said: Said, words: Words) -> tuple[Item, Item]:
        is_plain = row % self.plain_every == 0

        def after_prefix(generator: np.random.Generator) -> Rows:
            length = 0 if is_plain else int(generator.integers(1, max(2, len(said.harmful))))
            return (said.prefix_refusal(length),)

        def transition(generator: np.random.Generator) -> Rows:
            return (said.transition(words, kept(len(said.harmful), self.drop, generator)),)

        first = constant(said.reply()) if self.rows == "transition" else after_prefix
        return first, after_prefix if self.rows == "prefix" else transition


def kept(number: int, drop: float, generator: np.random.Generator) -> list[int]:
    """Return which of some positions keep their label, in ascending order; one at least does."""
    found: list[int] = np.flatnonzero(generator.random(number) >= drop).tolist()
    return found or [int(generator.integers(number))]

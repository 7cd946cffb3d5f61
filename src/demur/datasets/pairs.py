"""A set that ships: pairs of short questions that differ in little but what they mean.

Each pair, a group of its own, holds a harmless prompt of a dangerous sound and an unsafe twin of
nearly the same words and length, 4 to 14 words, in 14 kinds of misunderstanding (`category`). The
harmless one brings a helpful answer as `safe_response`, three of four unsafe ones a refusal.

Written for demur by a language model, one by one, without operational detail. Facts were checked
from memory only. Pairs close to one of the research collection's test sets were left out.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._packaged import packaged

__all__ = ["load"]

Split = Literal["train", "val"]

PATH = Path(__file__).with_suffix(".jsonl")


def load(split: Split | None = None) -> list[Example]:
    """Return the prompts of one split, or of all; the twins of a pair stand side by side.

    >>> [(example.group, example.label) for example in load()[:2]]
    [('pair-0001', 'safe'), ('pair-0001', 'unsafe')]
    """
    return packaged(PATH, split)

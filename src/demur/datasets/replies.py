"""Replies to learn from: what a model should say to prompts of the sets that ship.

Each row is a prompt of `written` or `starter`, with its id, label, group, kind and split, and
`safe_response`: a helpful answer to a safe prompt, a refusal of an unsafe one. Most safe prompts
are of a dangerous sound, and most unsafe ones come with the safe twin of their group. Answers are
25 to 90 words long and begin in many ways. Refusals decline, name the concern in a few words and
offer something near that is safe; where a life is at risk they point to help.

Written for demur by a language model, one by one, without operational detail. Facts were checked
from memory only, and no native speaker has read the other languages.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._packaged import packaged

__all__ = ["load"]

Split = Literal["train", "val"]

PATH = Path(__file__).with_suffix(".jsonl")


def load(split: Split | None = None) -> list[Example]:
    """Return the prompts of one split with their replies, or of all.

    >>> {example.safe_response is None for example in load()}
    {False}
    """
    return packaged(PATH, split)

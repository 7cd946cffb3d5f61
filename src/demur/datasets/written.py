"""A larger set that ships: prompts written for demur where public sets are thin.

All are requests only, without operational detail, and every kind holds both labels. Kinds, each a
source of its own: `lookalikes` (safe prompts of a dangerous sound and unsafe twins of nearly the
same words), `ordinary` (what people ask an assistant, and unsafe requests in the same formats and
lengths), `languages` (ordinary, dangerous-sounding and unsafe prompts in 32 languages) and
`taxonomy` (direct unsafe requests in 22 categories, each with a safe one of the same form).

Written by language models for this purpose and not checked by native speakers. Prompts close to
one of the research collection's test sets were left out.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._packaged import packaged

__all__ = ["load"]

Split = Literal["train", "val"]

PATH = Path(__file__).with_suffix(".jsonl")


def load(split: Split | None = None) -> list[Example]:
    """Return the prompts of one split, or of all.

    >>> len({example.source for example in load()})
    4
    """
    return packaged(PATH, split)

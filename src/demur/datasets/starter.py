"""A small set that ships: unsafe requests, their safe twins of the same shape, and ordinary ones.

Written for demur, in eight languages and every one with both labels; unsafe requests hold no
operational detail. Kinds: `unsafe`, `look_alike` (safe, but of a dangerous sound), `ordinary`,
`jailbreak` (unsafe in a wrapper) and `wrapped_safe` (the same wrappers around something harmless).
The `demo` prompts are in no other split.
"""

from pathlib import Path
from typing import Literal

from demur.core.examples import Example
from demur.datasets._packaged import packaged

__all__ = ["load"]

Split = Literal["train", "val", "demo"]

PATH = Path(__file__).with_suffix(".jsonl")


def load(split: Split | None = None) -> list[Example]:
    """Return the prompts of one split, or of all.

    >>> len(load("demo"))
    12
    """
    return packaged(PATH, split)

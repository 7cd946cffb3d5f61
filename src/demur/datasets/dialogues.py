"""A small set that ships: dialogues whose unsafe request is early, late, spread or a tool result.

Written for demur: 24 pairs of dialogues with 2, 4 or 8 user turns, or with a tool result after one.
The two of a pair are the same but for the turns of the request, which is unsafe in one and harmless
in the other. All are requests only, without operational detail; no assistant turn goes along with
one. `kind` names the shape, such as `4 turns, late`, and `group` the pair.
"""

from pathlib import Path

from demur.core.examples import Example
from demur.datasets import jsonl

__all__ = ["load"]

PATH = Path(__file__).with_suffix(".jsonl")


def load() -> list[Example]:
    """Return the dialogues.

    >>> len(load())
    48
    """
    return jsonl.load(PATH)

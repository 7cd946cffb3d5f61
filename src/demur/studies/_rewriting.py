"""Rewrites of a prompt at random: what an attacker tries who sees nothing but a score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from demur.core.errors import ConfigError
from demur.core.readings import Array
from demur.studies._edits import ENCODINGS, READABLE

MAX_EDITS = 3
"""Of the readable ones, in one rewrite."""


@dataclass(frozen=True)
class Rewrite:
    """A text that asks for the same."""

    text: str
    is_readable: bool
    """False if it is encoded."""


def rewrites(text: str, number: int, *, encoded_share: float, seed: Sequence[int]) -> list[Rewrite]:
    """Return rewrites of a text: one to three readable edits each, and an encoding on some.

    Args:
        text: Of a prompt.
        number: How many; fewer are the first of more.
        encoded_share: Chance of an encoding, 0 to 1.
        seed: Of the draws.

    Raises:
        ConfigError: The share is out of range.
    """
    if not 0 <= encoded_share <= 1:
        raise ConfigError(f"encoded_share is {encoded_share}: expected 0 to 1")
    return [
        _rewrite(text, np.random.default_rng((*seed, draw)), encoded_share)
        for draw in range(number)
    ]


def _rewrite(text: str, generator: np.random.Generator, encoded_share: float) -> Rewrite:
    edits = list(READABLE.values())
    num_edits = int(generator.integers(1, MAX_EDITS + 1))
    for place in sorted(generator.permutation(len(edits))[:num_edits].tolist()):
        text = edits[place](text, generator)
    if generator.random() >= encoded_share:
        return Rewrite(text, is_readable=True)
    encodings = list(ENCODINGS.values())
    encode = encodings[int(generator.integers(len(encodings)))]
    return Rewrite(encode(text, generator), is_readable=False)


def chance_within(budget: int, num_tried: Array, num_evading: Array) -> Array:
    """Return the chance that one of `budget` rewrites evades a detector, for each prompt.

    It is that of a draw without replacement from those that were tried, and so without the bias and
    much of the noise of looking at the first few.

    Paper: Chen et al., Evaluating Large Language Models Trained on Code (2021), arXiv 2107.03374,
    equation 1.

    Args:
        budget: Rewrites that an attacker tries, up to the fewest that were tried.
        num_tried: [prompt].
        num_evading: Of these, [prompt].

    >>> chance_within(2, np.array([4, 4, 4]), np.array([0, 1, 3]))
    array([0. , 0.5, 1. ])
    """
    chance: Array = hypergeom.sf(0, num_tried, num_evading, budget)
    return chance

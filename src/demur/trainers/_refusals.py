"""Refusals to learn from: those that examples bring, else texts that ship, in their language."""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from demur.core.examples import Example

TEXTS_PATH = Path(__file__).with_name("refusals.toml")
FALLBACK = "en"
"""The language of what is said where there is no text in the prompt's own."""


@cache
def texts() -> dict[str, tuple[str, ...]]:
    """Return the refusals that ship, by language."""
    with TEXTS_PATH.open("rb") as file:
        return {language: tuple(of) for language, of in tomllib.load(file).items()}


def refusals_to(examples: Sequence[Example], *, seed: int) -> list[str]:
    """Return a refusal of each prompt.

    It is the example's response where that is labelled safe; else one of the texts that ship, all
    of a language equally often.

    Args:
        examples: Unsafe prompts.
        seed: Of which text goes to which prompt.
    """
    generator = np.random.default_rng(seed)
    waiting: dict[str, list[str]] = {}
    found = []
    for example in examples:
        if example.response_label == "safe" and (example.response or "").strip():
            found.append(str(example.response))
            continue
        language = example.language if example.language in texts() else FALLBACK
        left = waiting.setdefault(str(language), [])
        if not left:
            left.extend(generator.permutation(texts()[str(language)]).tolist())
        found.append(left.pop())
    return found

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


def safe_reply_of(example: Example) -> str | None:
    """Return the reply that an example brings to be learnt; None if there is none.

    A response counts where it is labelled safe, or was given to a safe prompt and has no label.
    """
    is_safe = example.response_label == "safe" or (
        example.label == "safe" and example.response_label is None
    )
    for text in (example.safe_response, example.response if is_safe else None):
        if text is not None and text.strip():
            return text
    return None


def harmful_reply_of(example: Example) -> str | None:
    """Return a reply that does what an unsafe prompt asks, if the example brings one."""
    is_harmful = example.label == "unsafe" and example.response_label == "unsafe"
    for text in (example.harmful_response, example.response if is_harmful else None):
        if text is not None and text.strip():
            return text
    return None


class ShippedRefusals:
    """Deals out the refusals that ship, all of a language equally often.

    Args:
        seed: Of their order.
    """

    def __init__(self, *, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._waiting: dict[str, list[str]] = {}

    def next(self, example: Example) -> str:
        """Return a refusal in a prompt's language, or in English."""
        language = str(example.language if example.language in texts() else FALLBACK)
        left = self._waiting.setdefault(language, [])
        if not left:
            left.extend(self._generator.permutation(texts()[language]).tolist())
        return left.pop()


def refusals_to(examples: Sequence[Example], *, seed: int) -> list[str]:
    """Return a refusal of each prompt.

    It is the example's own safe reply; else one of the texts that ship, all of a language equally
    often.

    Args:
        examples: Unsafe prompts.
        seed: Of which text goes to which prompt.
    """
    shipped = ShippedRefusals(seed=seed)
    return [safe_reply_of(example) or shipped.next(example) for example in examples]

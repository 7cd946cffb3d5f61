"""How pages of results put numbers into words."""

from collections.abc import Sequence
from typing import Any

from demur.core.validation import rate_name, validated

LABELLERS = LABELLER, SECOND = "reply_classifier", "refusal_match"
"""Say what became of a reply: rates go by the first, and the second stands beside it."""


def rate_names() -> tuple[str, str]:
    """Return what the first labeller's rates are called, on unsafe prompts and on safe ones."""
    labeller = validated(LABELLER)
    return rate_name(labeller, "unsafe"), rate_name(labeller, "safe")


def points(found: Sequence[Any]) -> str:
    """Return a difference of shares and its interval in points of a hundred.

    >>> points((0.025, (-0.01, 0.06)))
    '+2.5 (-1.0 to +6.0)'
    """
    value, (low, high) = found
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

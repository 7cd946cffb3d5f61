"""How pages of results put numbers into words."""

from collections.abc import Sequence
from typing import Any


def points(found: Sequence[Any]) -> str:
    """Return a difference of shares and its interval in points of a hundred.

    >>> points((0.025, (-0.01, 0.06)))
    '+2.5 (-1.0 to +6.0)'
    """
    value, (low, high) = found
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

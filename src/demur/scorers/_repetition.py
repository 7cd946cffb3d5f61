"""Measures of a text that is no language any more: loops, few different words, broken characters.

No model is asked. The longest text looked at is its first `MAX_CHARACTERS`.
"""

import unicodedata
from collections.abc import Callable
from itertools import pairwise

MAX_CHARACTERS = 4000
_BROKEN = {"Cc", "Cn", "Co", "Cs"}
_LONGEST_WORD = 20
"""Characters a word on average, over which a text has no spaces between words."""


def units(text: str) -> list[str]:
    """Return the words of a text, or its characters where it has no spaces between words."""
    words = text.split()
    if words and sum(map(len, words)) / len(words) > _LONGEST_WORD:
        return [character for character in text if not character.isspace()]
    return words


def distinct_share(text: str, *, n: int) -> float:
    """Return the share of different runs of n words among all of them, 0 to 1; 1 if there are none.

    >>> distinct_share("a b a b a b", n=2)
    0.4
    """
    found = units(text[:MAX_CHARACTERS])
    runs = [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def longest_repeat_share(text: str) -> float:
    """Return the length of the longest part that occurs twice, as a share of the text, 0 to 1.

    The two may overlap, as they do in a loop.

    >>> longest_repeat_share("abcabcabcabc")
    0.75
    """
    whole = text[:MAX_CHARACTERS].strip()
    return _longest(len(whole), lambda length: _occurs_twice(whole, length)) / max(1, len(whole))


def broken_share(text: str) -> float:
    r"""Return the share of replacement, control, private and unassigned characters.

    >>> broken_share("ab\ufffd\ufffd")
    0.5
    """
    whole = text[:MAX_CHARACTERS]
    broken = sum(
        character == "\ufffd" or unicodedata.category(character) in _BROKEN
        for character in whole
        if character not in "\n\r\t"
    )
    return broken / max(1, len(whole))


def symbol_share(text: str) -> float:
    """Return the share of visible characters that are no letters, marks or digits, 0 to 1.

    >>> symbol_share("ab !?")
    0.5
    """
    visible = [character for character in text[:MAX_CHARACTERS] if not character.isspace()]
    symbols = sum(unicodedata.category(character)[0] not in "LMN" for character in visible)
    return symbols / max(1, len(visible))


def longest_run_share(text: str) -> float:
    """Return the longest run of one character, as a share of the text, 0 to 1.

    >>> longest_run_share("abbbb")
    0.8
    """
    whole = text[:MAX_CHARACTERS].strip()
    longest = run = 1 if whole else 0
    for before, after in pairwise(whole):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    return longest / max(1, len(whole))


def _longest(size: int, holds: Callable[[int], bool]) -> int:
    """Return the greatest length for which a claim holds, which holds for all shorter ones too."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _occurs_twice(text: str, length: int) -> bool:
    seen: set[str] = set()
    for start in range(len(text) - length + 1):
        part = text[start : start + length]
        if part in seen:
            return True
        seen.add(part)
    return False

"""Lists of words as arrays: a fitted state is stored as arrays alone, and never pickled."""

from collections.abc import Sequence

import numpy as np

from demur.core.errors import DataError
from demur.core.readings import Array


def words_to_array(words: Sequence[str]) -> Array:
    r"""Return words as one array of UTF-8 [byte], uint8, joined by line breaks.

    >>> words_to_array(["a", "b"]).tolist()
    [97, 10, 98]
    """
    return np.frombuffer("\n".join(words).encode("utf-8", "surrogatepass"), np.uint8).copy()


def words_from_array(array: Array, *, name: str) -> list[str]:
    """Return the words that `words_to_array` wrote.

    Args:
        array: [byte], uint8.
        name: Of the array, for the error.

    Raises:
        DataError: The array holds no such list, or a word is empty or there twice.
    """
    if array.dtype != np.uint8 or array.ndim != 1:
        raise DataError(f"{name} is {array.dtype} {array.shape}: expected bytes of UTF-8")
    try:
        words = array.tobytes().decode("utf-8", "surrogatepass").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is no UTF-8 ({error}): fit the detector again") from error
    if not all(words) or len(set(words)) < len(words):
        raise DataError(f"{name} holds an empty word, or one twice: fit the detector again")
    return words

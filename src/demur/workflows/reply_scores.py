"""Scores whole replies as they would be scored while they are decoded, a token after another."""

from collections.abc import Sequence

import numpy as np

from demur.core.protocols import StreamingDetector
from demur.core.readings import Array, Readings
from demur.core.streaming import token_read

ROWS_TOGETHER = 64
"""Replies that are scored side by side; those of like length, since short ones leave."""


def streamed_scores(detector: StreamingDetector, readings: Readings) -> list[Array]:
    """Return the scores [token] of each reply: after its first token, its second, and so on.

    Args:
        detector: Fitted.
        readings: That hold the detector's read `by_token`.

    Raises:
        CapabilityError: They do not.
        ConfigError: The detector reads something else than the states of a reply's tokens, or more.
    """
    replies = readings.ragged(token_read(detector))
    scores = [np.empty(states.shape[1]) for states in replies]
    longest_first = sorted(range(len(replies)), key=lambda row: -replies[row].shape[1])
    for first in range(0, len(replies), ROWS_TOGETHER):
        rows = longest_first[first : first + ROWS_TOGETHER]
        _stream(detector, [replies[row] for row in rows], [scores[row] for row in rows])
    return scores


def highest_scores(detector: StreamingDetector, readings: Readings) -> Array:
    """Return the highest score [reply] that each reply ever has.

    A reply is stopped as soon as its score is at or over the threshold; so this is the score that
    decides whether it ever is.
    """
    return np.array([scores.max() for scores in streamed_scores(detector, readings)])


def _stream(detector: StreamingDetector, replies: Sequence[Array], scores: list[Array]) -> None:
    """Fill in the scores of replies [layer, token, d_model], the longest first."""
    lengths = np.array([states.shape[1] for states in replies])
    state = detector.start(len(replies))
    for token in range(lengths[0]):
        num_rows = int((lengths > token).sum())
        state = {name: array[:num_rows] for name, array in state.items()}
        new = np.stack([states[:, token] for states in replies[:num_rows]])
        state, of_rows = detector.update(state, new)
        for row in range(num_rows):
            scores[row][token] = of_rows[row]

"""What methods that read every token share: which read it is, its states, and their moments."""

from collections.abc import Sequence

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read
from demur.detectors._states import without_constants


def require_token_read(reads: tuple[Read, ...]) -> CaptureSpec:
    """Return the one read of a detector that reads tokens.

    Raises:
        ConfigError: There are several, or it is not a capture by token.
    """
    if len(reads) == 1 and isinstance(reads[0], CaptureSpec) and not reads[0].is_pooled:
        return reads[0]
    raise ConfigError(f"the reads are {list(reads)}: expected one capture by token, not pooled")


def token_states(readings: Readings, read: CaptureSpec, *, num_prompts: int) -> tuple[Array, ...]:
    """Return the states of each prompt's tokens, [layer, position, d_model].

    Args:
        readings: That hold the read.
        read: Of one state a token.
        num_prompts: How many the readings must hold.

    Raises:
        CapabilityError: The read was not captured.
        DataError: A state is not finite, a prompt has no tokens, or the prompts are others.
    """
    if len(readings) != num_prompts:
        raise DataError(f"the readings hold {len(readings)} prompts, the targets {num_prompts}")
    prompts = readings.ragged(read)
    if any(not prompt.shape[1] for prompt in prompts):
        raise DataError(f"a prompt has no tokens to read at {read.positions!r}")
    return prompts


def require_same_shape(prompts: Sequence[Array]) -> None:
    """Refuse prompts whose states are of different shapes.

    Raises:
        DataError: They are.
    """
    shapes = {(len(prompt), prompt.shape[2]) for prompt in prompts}
    if len(shapes) > 1:
        raise DataError(
            f"the prompts' states differ in shape: [layer, d_model] is one of {sorted(shapes)}; "
            "capture them with one model"
        )


def require_shape(states: Array, expected: tuple[int, int]) -> None:
    """Refuse states of another model.

    Args:
        states: [layer, position, d_model].
        expected: [layer, d_model].

    Raises:
        DataError: The layers or the width are others.
    """
    if (len(states), states.shape[2]) != expected:
        raise DataError(
            f"a prompt's states have shape {states.shape}: expected [layer, position, d_model] "
            f"with [layer, d_model] = {list(expected)}"
        )


def require_new_tokens(states: Array, expected: tuple[int, int]) -> None:
    """Refuse states of new tokens that cannot be scored.

    Args:
        states: [row, layer, d_model].
        expected: [layer, d_model].

    Raises:
        DataError: The shape is another, or a state is not finite.
    """
    if states.shape[1:] != expected:
        raise DataError(
            f"states have shape {states.shape}: expected [row, layer, d_model] with "
            f"[layer, d_model] = {list(expected)}"
        )
    if not np.isfinite(states).all():
        raise DataError("a captured state is not finite: check the model's dtype and weights")


def flat(states: Array) -> Array:
    """Return states [layer, position, d_model] with their layers joined: [position, feature]."""
    return states.swapaxes(0, 1).reshape(states.shape[1], -1)


def standardised(prompts: Sequence[Array], mean: Array, scale: Array) -> Array:
    """Return the tokens of all prompts, one after another: [token, feature], float32.

    Args:
        prompts: Token states of each, [layer, position, d_model]; they stay as they are.
        mean: [feature].
        scale: [feature]; infinity silences a feature.
    """
    tokens = np.concatenate([flat(prompt) for prompt in prompts], dtype=np.float32)
    tokens -= mean.astype(np.float32)
    tokens /= scale.astype(np.float32)
    return tokens


def moments(prompts: Sequence[Array]) -> tuple[Array, Array]:
    """Return the mean and the standard deviation over all tokens, float64.

    A constant feature has a standard deviation of infinity, which silences it.

    Args:
        prompts: Token states of each prompt, [position, feature] or [layer, position, d_model].

    Returns:
        Two arrays [feature], or two [layer, d_model].
    """
    count = sum(prompt.shape[-2] for prompt in prompts)
    mean: Array = sum(prompt.sum(-2, dtype=np.float64) for prompt in prompts) / count
    # A second pass: the difference of large sums would lose the spread of a far coordinate.
    squares = sum(np.square(prompt - mean[..., None, :]).sum(-2) for prompt in prompts)
    return mean, without_constants(mean, np.sqrt(squares / count))

"""Which prompts are too long for a model, before any of them is read."""

from collections.abc import Sequence

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.workflows.capture import Capturer

__all__ = ["require_room", "with_room"]

NAMED = 5
"""Prompts that an error names, at most."""


def require_room(capturer: Capturer, examples: Sequence[Example]) -> None:
    """Refuse prompts that are too long for the model.

    Args:
        capturer: Of the model.
        examples: Labelled or not.

    Raises:
        DataError: A prompt does not fit into the context, or cannot be rendered.
    """
    lengths = capturer.lengths([example.chat for example in examples])
    found = [
        f"{example.id!r} ({length} tokens)"
        for example, length in zip(examples, lengths, strict=True)
        if length >= capturer.max_tokens
    ]
    if found:
        others = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise DataError(
            f"{len(found)} of {len(examples)} prompts are too long for the model, which takes "
            f"fewer than {capturer.max_tokens} tokens: {', '.join(found[:NAMED])}{others}; "
            "shorten them, or leave them out with --leave-out-long"
        )


def with_room(capturer: Capturer, examples: Sequence[Example]) -> list[Example]:
    """Return the prompts that are not too long for the model.

    Args:
        capturer: Of the model.
        examples: Labelled or not.

    Raises:
        DataError: A prompt cannot be rendered.
    """
    lengths = capturer.lengths([example.chat for example in examples])
    return [
        example
        for example, length in zip(examples, lengths, strict=True)
        if length < capturer.max_tokens
    ]

"""What commands do with prompts that are too long for the model."""

from collections.abc import Sequence

from demur.cli._session import stderr
from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.reads import Read, Texts
from demur.workflows.capture import Capturer

NAMED = 5
"""Prompts that an error names, at most."""


def in_context(
    capturer: Capturer, reads: Sequence[Read], *parts: list[Example], leave_out: bool
) -> list[list[Example]]:
    """Return the prompts of each part that the model's context holds, and say how many others are.

    Texts that the model does not read may have any length.

    Raises:
        DataError: Some are too long, and are not to be left out; or one cannot be rendered.
    """
    if all(isinstance(read, Texts) for read in reads):
        return list(parts)
    long = [capturer.too_long([example.chat for example in part]) for part in parts]
    found = [
        f"{part[row].id!r} ({length} tokens)"
        for part, of in zip(parts, long, strict=True)
        for row, length in of.items()
    ]
    if not found:
        return list(parts)
    words = f"{len(found)} of {sum(map(len, parts))} prompts are too long for the model"
    if not leave_out:
        others = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise DataError(
            f"{words}, which takes fewer than {capturer.max_tokens} tokens: "
            f"{', '.join(found[:NAMED])}{others}; shorten them, or leave them out with "
            "--leave-out-long"
        )
    stderr.print(f"{words}: left out")
    return [
        [example for row, example in enumerate(part) if row not in of]
        for part, of in zip(parts, long, strict=True)
    ]

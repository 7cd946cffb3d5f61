"""What commands do with prompts that are too long for the model."""

from collections.abc import Sequence

from demur.cli._session import stderr
from demur.core.examples import Example
from demur.core.reads import Read, Texts
from demur.workflows.capture import Capturer
from demur.workflows.context import require_room, with_room


def in_context(
    capturer: Capturer, reads: Sequence[Read], *parts: list[Example], leave_out: bool
) -> list[list[Example]]:
    """Return the prompts of each part that the model's context holds, and say how many others are.

    Texts that the model does not read may have any length.

    Raises:
        DataError: Some are too long, and are not to be left out.
    """
    if all(isinstance(read, Texts) for read in reads):
        return list(parts)
    if not leave_out:
        require_room(capturer, [example for part in parts for example in part])
        return list(parts)
    held = [with_room(capturer, part) for part in parts]
    number = sum(map(len, parts))
    if left_out := number - sum(map(len, held)):
        stderr.print(f"{left_out} of {number} prompts are too long for the model: left out")
    return held

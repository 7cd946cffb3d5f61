"""Interventions: the closed list of what can be done to a flagged request.

They are data. A responder makes one, the guard passes it on, and only engines carry it out.
"""

from dataclasses import dataclass
from typing import NamedTuple

from demur.core.types import Prompt


class Kept(NamedTuple):
    """How much of a prefill survives: the blocks below one, and the positions before one."""

    blocks_below: int | None
    """None: all blocks."""
    positions_before: int


@dataclass(frozen=True)
class ReplyWith:
    """Answer with a text; the model draws nothing."""

    text: str

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: nothing is computed again."""
        return Kept(None, len(prompt))


@dataclass(frozen=True)
class PrependText:
    """Render the chat again with a safety prompt, and answer that.

    The text is appended to an existing system message, or becomes one; where the template knows
    no system role, it is put before the first user turn.
    """

    text: str

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep nothing.

        The system turn is at the very start, so the shared prefix is a few marker tokens, and a
        prefill in two pieces rounds differently from the whole one in bfloat16.
        """
        return Kept(None, 0)


@dataclass(frozen=True)
class EndReply:
    """End the reply where it stands; before its first token there is none."""

    def keeps(self, prompt: Prompt) -> Kept:
        """Keep all: nothing is computed again."""
        return Kept(None, len(prompt))


Intervention = ReplyWith | PrependText | EndReply

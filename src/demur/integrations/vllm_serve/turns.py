"""Finds the tokens of the turns of a chat that another server renders and splits into tokens.

The chat is rendered once more with placeholders in place of its texts, which shows where the
template puts each. Offsets of the tokens that the model gets then name the tokens. In a prompt that
is no chat, the template's own markers are looked for: a client may have written them by hand.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demur.core.errors import DataError
from demur.core.types import Message, Span
from demur.modeling.chat import hole, located, token_span

Messages = Sequence[Mapping[str, Any]]
"""As OpenAI's API takes them; contents are texts or lists of parts."""
SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Turns:
    """Where the turns of a prompt are."""

    users: tuple[tuple[int, int], ...]
    """Start and stop of each user turn, in order."""
    has_forged_markers: bool
    """The text of a turn itself yields tokens that the template uses as markers."""


@dataclass(frozen=True)
class Holed:
    """A chat with placeholders in place of its texts."""

    messages: tuple[dict[str, Any], ...]
    contents: tuple[Message, ...]
    """The texts, in order."""
    numbers: tuple[int, ...]
    """For each text the number of its message."""
    num_users: int
    """Messages of users."""

    @classmethod
    def of(cls, messages: Messages) -> "Holed":
        """Take the texts out of messages; anything else is left as it is."""
        found: list[Message] = []
        numbers: list[int] = []
        holed = []
        for number, message in enumerate(messages):
            role, content = str(message.get("role")), message.get("content")

            def taken(text: str, role: str = role, number: int = number) -> str:
                found.append(Message(role, text))  # type: ignore[arg-type]  # any of an API's
                numbers.append(number)
                return hole(len(found) - 1)

            if isinstance(content, str):
                content = taken(content)
            elif isinstance(content, list):
                content = [_holed_part(part, taken) for part in content]
            holed.append({**message, "content": content})
        num_users = sum(message.get("role") == "user" for message in messages)
        return cls(tuple(holed), tuple(found), tuple(numbers), num_users)


def _holed_part(part: Any, taken: Any) -> Any:
    if isinstance(part, str):
        return taken(part)
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {**part, "text": taken(part["text"])}
    return part


def find_turns(
    chat: Holed,
    rendered: str,
    text: str,
    *,
    token_ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    special_ids: Collection[int] = (),
) -> Turns | None:
    """Return where the turns of a prompt are; None if not every user turn is found.

    Args:
        chat: With placeholders.
        rendered: What the template makes of it.
        text: What the template makes of the chat itself.
        token_ids: Of the text.
        offsets: First character of each token, and the one behind its last.
        special_ids: Tokens that are markers.
    """
    try:
        characters = located(chat.contents, rendered, text)
    except DataError:
        return None
    spans = {
        place: _joined(token_span(found, offsets), len(offsets))
        for place, found in enumerate(characters)
        if found is not None and found.stop > found.start
    }
    users: dict[int, tuple[int, int]] = {}
    for place, (start, stop) in spans.items():
        if chat.contents[place].role == "user" and stop > start:
            first, last = users.get(chat.numbers[place], (start, stop))
            users[chat.numbers[place]] = min(first, start), max(last, stop)
    if not users or len(users) < chat.num_users:
        return None
    forged = any(
        token_ids[place] in special_ids for span in spans.values() for place in range(*span)
    )
    return Turns(tuple(users[number] for number in sorted(users)), forged)


def _joined(span: Span, num_tokens: int) -> tuple[int, int]:
    return (span.start, span.stop) if span.start < num_tokens else (0, 0)


@dataclass(frozen=True)
class Markers:
    """What a chat template puts around the text of a user."""

    opening: tuple[int, ...]
    """Tokens before it, from the last special one on, without white space at their end."""
    gap: tuple[int, ...]
    """The white space."""
    special_ids: frozenset[int]
    """Any of these ends a turn."""

    @classmethod
    def of(
        cls, rendered: str, *, encode: Callable[[str], Sequence[int]], special_ids: Collection[int]
    ) -> "Markers | None":
        """Return the markers of a template; None if it uses no special tokens.

        Args:
            rendered: One user turn whose text is `hole(0)`.
            encode: Splits a text into tokens, and adds none.
            special_ids: Tokens that are markers.
        """
        before, found, _ = rendered.partition(hole(0))
        ids = tuple(encode(before.rstrip()))
        starts = [place for place, token_id in enumerate(ids) if token_id in special_ids]
        if not found or not starts:
            return None
        gap = tuple(encode(before[len(before.rstrip()) :]))
        return cls(ids[starts[-1] :], gap, frozenset(special_ids))

    def turns(self, token_ids: Sequence[int]) -> Turns | None:
        """Return the user turns of a prompt that is no chat; None if it shows none."""
        ids, width = tuple(token_ids), len(self.opening)
        users = []
        for place in range(len(ids) - width + 1):
            if ids[place : place + width] != self.opening:
                continue
            start = place + width
            if ids[start : start + len(self.gap)] == self.gap:
                start += len(self.gap)
            stops = (at for at in range(start, len(ids)) if ids[at] in self.special_ids)
            stop = next(stops, len(ids))
            if stop > start:
                users.append((start, stop))
        return Turns(tuple(users), has_forged_markers=False) if users else None


def with_safety_prompt(messages: Messages, text: str) -> list[Mapping[str, Any]]:
    """Return OpenAI-style messages with a safety prompt; see `Chat.with_safety_prompt`."""
    first, *others = messages
    if first.get("role") not in SYSTEM:
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        return [{**first, "content": [*content, {"type": "text", "text": text}]}, *others]
    return [{**first, "content": f"{content}\n\n{text}" if content else text}, *others]

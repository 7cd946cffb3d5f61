"""Turns the messages of a request to an upstream into a chat that the local model can read.

The upstream's model may know tools, pictures and roles that the local template does not. What
counts is that every text is read: those of tools become user turns, the arguments of an assistant's
calls part of its turn, and what cannot be read at all is named.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demur.core.errors import DataError
from demur.core.types import Chat
from demur.serving.errors import ApiError

SYSTEM, TOOL = ("system", "developer"), ("tool", "function")
"""Roles by what becomes of them; all others but the assistant's are read as a user's."""
TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
"""Parts of a message that are texts."""
LABELS = ("role", "type", "id", "tool_call_id", "index")
"""Fields that hold no text, unless their value is longer than a name."""
_NAME = re.compile(r"[A-Za-z0-9_.:-]{0,64}")


@dataclass(frozen=True)
class JudgedChat:
    """What is judged of a request."""

    chat: Chat
    """All texts, turn by turn."""
    newest: Chat | None
    """The results of tools since the assistant's last turn, as a user turn of their own."""
    unscanned: tuple[str, ...]
    """Places of parts that are no texts, such as `messages.0.content.1`."""

    @property
    def chats(self) -> tuple[Chat, ...]:
        """The chats to judge; what any of them is flagged for, the request is."""
        return (self.chat,) if self.newest is None else (self.chat, self.newest)

    @property
    def in_one_turn(self) -> tuple[Chat, ...]:
        """The same for a template that does not show every turn: all texts in one, and the newest.

        The newest turn stands alone too, for detectors that read the mean of the last one.
        """
        turns = [message.content for message in self.chat.messages]
        last = self.newest or Chat.from_text(turns[-1])
        return tuple(dict.fromkeys((Chat.from_text("\n\n".join(turns)), last)))


@dataclass(frozen=True)
class _Turn:
    role: str
    """`system`, `user`, `assistant` or `tool`."""
    text: str


def judged_chat(messages: Sequence[Mapping[str, Any]]) -> JudgedChat:
    """Return what is judged of messages.

    Args:
        messages: OpenAI-style, each with a role.

    Raises:
        ApiError: There is no text in them, or one that is no valid Unicode.
    """
    unscanned: list[str] = []
    turns = []
    for number, message in enumerate(messages):
        texts = list(_texts(message, f"messages.{number}", unscanned))
        text = "\n".join(text for text in texts if text.strip())
        if text:
            turns.append(_Turn(_role(message["role"]), text))
    if not turns:
        raise ApiError(
            400,
            "messages: there is no text in them: there is nothing to judge",
            param="messages",
            code="invalid_prompt",
        )
    try:
        chat = Chat.from_messages(_as_messages(turns))
        newest = _newest_results(turns)
    except DataError as error:
        raise ApiError(
            400, f"messages: {error}", param="messages", code="invalid_prompt"
        ) from error
    return JudgedChat(chat, None if newest == chat else newest, tuple(unscanned))


def _role(role: str) -> str:
    if role in SYSTEM:
        return "system"
    if role in TOOL:
        return "tool"
    return "assistant" if role == "assistant" else "user"


def _as_messages(turns: Sequence[_Turn]) -> list[dict[str, str]]:
    """Return turns that templates know: a system turn comes first, a user turn last.

    Several system turns in a row are one, and so are the results of several calls.
    """
    merged: list[_Turn] = []
    for turn in turns:
        if merged and turn.role == merged[-1].role and turn.role in ("system", "tool"):
            merged[-1] = _Turn(turn.role, f"{merged[-1].text}\n\n{turn.text}")
        else:
            merged.append(turn)
    roles = ["assistant" if turn.role == "assistant" else "user" for turn in merged]
    if merged[0].role == "system":
        roles[0] = "system"
    roles[-1] = "user"
    return [{"role": role, "content": turn.text} for role, turn in zip(roles, merged, strict=True)]


def _newest_results(turns: Sequence[_Turn]) -> Chat | None:
    """Return what tools have said since the assistant's last turn."""
    results: list[str] = []
    for turn in reversed(turns):
        if turn.role == "assistant":
            break
        if turn.role == "tool":
            results.append(turn.text)
    return Chat.from_text("\n\n".join(reversed(results))) if results else None


def _texts(message: Mapping[str, Any], place: str, unscanned: list[str]) -> Iterator[str]:
    """Yield all texts of a message; note the places of what is none."""
    rest = dict(message)
    if isinstance(message.get("content"), list):
        for number, part in enumerate(rest.pop("content")):
            yield from _texts_of_part(part, f"{place}.content.{number}", unscanned)
    if rest.pop("audio", None) is not None:
        unscanned.append(f"{place}.audio")
    yield from _leaves(rest)


def _texts_of_part(part: Any, place: str, unscanned: list[str]) -> Iterator[str]:
    """Yield the texts of a part of a message; of a picture and the like, those beside it."""
    if isinstance(part, str):
        yield part
        return
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXT_TYPES:
        yield from _leaves(part)
        return
    unscanned.append(place)
    yield f"[{kind if _is_name(kind) else 'part'}]"
    yield from (text for text in _leaves(part) if " " in text)


def _leaves(value: Any) -> Iterator[str]:
    """Yield every text in a value, the names of fields too where they are longer than names are."""
    if isinstance(value, str):
        yield value
        yield from _hidden_by_escapes(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not _is_name(name):
                yield name
            if name not in LABELS or not _is_name(inner):
                yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)


def _hidden_by_escapes(text: str) -> Iterator[str]:
    """Yield the texts of JSON within a text, such as a call's arguments, where they are escaped."""
    if "\\u" not in text:
        return
    try:
        yield from list(_leaves(json.loads(text)))
    except (ValueError, RecursionError):  # no JSON: the text itself is judged
        return


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None

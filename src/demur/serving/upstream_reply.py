"""Reads an upstream's reply while it is passed on: its events, counts of tokens, and text."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass
class Events:
    """Cuts a stream of bytes after each server-sent event."""

    rest: bytes = b""
    """An event that is not complete; none of it is sent before its end."""

    def take(self, piece: bytes) -> list[bytes]:
        """Return the events that are complete with another piece, each with the blank line."""
        self.rest += piece
        events, start = [], 0
        for end in _END_OF_EVENT.finditer(self.rest):
            events.append(self.rest[start : end.end()])
            start = end.end()
        self.rest = self.rest[start:]
        return events


def payload_of(event: bytes) -> bytes:
    """Return what an event says: its data lines."""
    lines = event.splitlines()
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


@dataclass
class UpstreamReply:
    """What is known of a reply so far."""

    num_prompt_tokens: int | None = None
    """None as long as the upstream has not said it."""
    num_reply_tokens: int = 0
    finish_reason: str | None = None
    """Of the last choice that has ended."""
    head: dict[str, Any] = field(default_factory=dict)
    """The fields that all chunks of a stream share."""
    _texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What was said, of several choices one after the other, or as it came."""
        return "".join(self._texts)

    def take(self, body: object) -> None:
        """Take note of a whole reply, or of a chunk; what is unlike OpenAI's is passed over."""
        if not isinstance(body, Mapping):
            return
        self.head = {name: body[name] for name in ("id", "created", "model") if name in body}
        usage = body.get("usage")
        if isinstance(usage, Mapping):
            self.num_prompt_tokens = _count(usage.get("prompt_tokens"))
            self.num_reply_tokens = _count(usage.get("completion_tokens")) or 0
        choices = body.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping):
                self._take_choice(choice)

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason = reason
        said = choice.get("message") or choice.get("delta")
        text = said.get("content") if isinstance(said, Mapping) else None
        if isinstance(text, str):
            self._texts.append(text)


def parsed(content: bytes) -> Any:
    """Return what JSON says; None for what is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None  # type: ignore[return-value]  # checked above

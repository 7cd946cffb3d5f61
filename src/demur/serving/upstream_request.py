"""The body of a request that goes on to an upstream: what the guard needs to know of it.

The body is passed on as it came, so it has to mean one thing only. JSON that parsers read in
different ways is refused: names that occur twice, or that differ in their case alone, which some
parsers overlook; then one of two texts would be judged, and the other answered.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from demur.serving.errors import ApiError, invalid

MAX_DEPTH = 64
"""Of objects and lists in messages."""


@dataclass(frozen=True)
class UpstreamRequest:
    """A request for a chat completion, as far as it matters to the guard."""

    content: bytes
    """As it came."""
    model: str
    """Empty if none is named."""
    messages: Sequence[Mapping[str, Any]]
    is_streamed: bool
    includes_usage: bool
    """The stream ends with the counts of tokens."""
    identifier: str | None
    """What the client calls its user."""

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Read a body.

        Raises:
            ApiError: It is no JSON, may be read in two ways, or has no messages.
        """
        body = _parsed(content)
        if not isinstance(body, dict):
            raise ApiError(400, "the body is no JSON object", code="invalid_json")
        _require_unlike(body, "the body")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise invalid("messages", "expected a list of at least one message")
        _require_one_meaning(messages, "messages")
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise invalid(f"messages.{number}", "expected an object with a role")
        options = body.get("stream_options")
        return cls(
            content=content,
            model=_text(body.get("model")) or "",
            messages=messages,
            is_streamed=body.get("stream") is True,
            includes_usage=isinstance(options, dict) and options.get("include_usage") is True,
            identifier=_text(body.get("safety_identifier")) or _text(body.get("user")),
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _parsed(content: bytes) -> Any:
    """Return what UTF-8 JSON says.

    Raises:
        ApiError: It is none, or a name occurs twice in an object.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is no JSON in UTF-8", code="invalid_json") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _ambiguous("the body")
    return found


def _require_one_meaning(value: Any, place: str, depth: int = 0) -> None:
    """Refuse names that differ in their case alone, anywhere, and what is too deep to be read."""
    if depth > MAX_DEPTH:
        raise ApiError(400, f"{place}: nested deeper than {MAX_DEPTH}", code="invalid_value")
    if isinstance(value, dict):
        _require_unlike(value, place)
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        _require_one_meaning(item, place, depth + 1)


def _require_unlike(names: Mapping[str, Any], place: str) -> None:
    if len({name.casefold() for name in names}) < len(names):
        raise _ambiguous(place)


def _ambiguous(place: str) -> ApiError:
    return ApiError(
        400,
        f"{place}: a name occurs twice in an object, perhaps in another case: parsers differ on "
        "which one counts",
        code="ambiguous_json",
    )

"""Chats, rendered prompts, sampling options and the identity of a model.

All of them are frozen: what goes into a guard is what was scored.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self, get_args

from demur.core.errors import ConfigError, DataError

Role = Literal["system", "user", "assistant", "tool"]
SpanKind = Literal["system", "user", "assistant", "tool", "generation_prompt", "reply"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def require_unicode(text: str) -> None:
    """Refuse what no tokenizer and no file can hold: half of a surrogate pair.

    Raises:
        DataError: The text holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} is half of a surrogate pair, which is no valid Unicode: "
            "remove it, or give both halves"
        ) from error


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation, in the order in which it was said."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        """Refuse a chat without turns."""
        if not self.messages:
            raise DataError("a chat has no messages: give at least one user turn")

    @classmethod
    def from_text(cls, text: str, *, system: str | None = None) -> Self:
        """Make a chat of one user message.

        Args:
            text: What the user says.
            system: A system prompt; None leaves the one that the model's template brings.

        Raises:
            DataError: `text` is empty or white space.
        """
        if not text.strip():
            raise DataError("the prompt is empty: give a text with at least one visible character")
        require_unicode((system or "") + text)
        first = () if system is None else (Message("system", system),)
        return cls((*first, Message("user", text)))

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, object]]) -> Self:
        """Make a chat of OpenAI-style messages, each with `role` and a text `content`.

        Raises:
            DataError: A message lacks a known role or a text, or there is no user turn with text.
        """
        turns = tuple(_message(number, message) for number, message in enumerate(messages))
        if not any(turn.role == "user" and turn.content.strip() for turn in turns):
            raise DataError("the chat has no user message with text: there is nothing to score")
        return cls(turns)

    @property
    def last_user_text(self) -> str:
        """The content of the last user turn; empty if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def with_safety_prompt(self, text: str) -> "Chat":
        """Return the chat with a safety prompt.

        It is appended to an existing system message, or becomes one.
        """
        first = self.messages[0]
        if first.role != "system":
            return Chat((Message("system", text), *self.messages))
        joined = Message("system", f"{first.content}\n\n{text}")
        return Chat((joined, *self.messages[1:]))

    def as_messages(self) -> list[dict[str, str]]:
        """Return the turns as OpenAI-style dictionaries."""
        return [{"role": m.role, "content": m.content} for m in self.messages]

    @property
    def sha256(self) -> str:
        """The hash of its turns, which stands for it in files that hold no text."""
        return hashlib.sha256(json.dumps(self.as_messages()).encode()).hexdigest()


def _message(number: int, message: Mapping[str, object]) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f"message {number} is {message!r}: expected an object with role and content"
        )
    role, content = message.get("role"), message.get("content")
    if role not in get_args(Role):
        raise DataError(f"message {number} has role {role!r}: expected one of {get_args(Role)}")
    if not isinstance(content, str):
        raise DataError(
            f"message {number} has content of type {type(content).__name__}: expected a text"
        )
    require_unicode(content)
    return Message(role, content)  # type: ignore[arg-type]  # checked above


@dataclass(frozen=True)
class Span:
    """A run of tokens of a rendered prompt: `start` (inclusive) to `stop` (exclusive)."""

    kind: SpanKind
    start: int
    stop: int


@dataclass(frozen=True)
class Prompt:
    """A chat as the model will read it: unpadded, with the generation prompt at its end.

    A reply that the model has read, too, stands after it.
    """

    chat: Chat
    token_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """The tokens of each turn's content, in order, of the generation prompt, and of the reply."""
    has_forged_markers: bool = False
    """True if the text of a turn itself yields tokens that the template uses as markers."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.token_ids)

    def spans_of(self, kind: SpanKind) -> tuple[Span, ...]:
        """Return the spans of one kind, in order."""
        return tuple(span for span in self.spans if span.kind == kind)

    def with_reply(self, token_ids: Sequence[int]) -> Self:
        """Return the prompt with the tokens of a reply after it.

        Raises:
            DataError: There are no tokens.
        """
        if not token_ids:
            raise DataError("the reply is empty: there is nothing to read; leave it out")
        ids = (*self.token_ids, *token_ids)
        return replace(self, token_ids=ids, spans=(*self.spans, Span("reply", len(self), len(ids))))


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn."""

    max_tokens: int = 256
    """Most tokens of a reply; 0 scores the prompt and draws nothing."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Smallest probability mass to draw from, over 0 and at most 1."""
    seed: int = 0
    """Seeds the row's own generator, together with the request's id."""
    stop: tuple[str, ...] = ()
    """Texts at which a reply ends; they are not part of it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.max_tokens < 0:
            raise ConfigError(f"max_tokens is {self.max_tokens}: expected 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}: expected 0 or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: expected more than 0 and at most 1")
        if any(not text for text in self.stop):
            raise ConfigError("a stop text is empty: every reply would end at once; leave it out")


@dataclass(frozen=True)
class ModelId:
    """What a detector depends on: three hashes that must agree, and what the fingerprint judges."""

    architecture: str
    """Hash of the shapes: model type, number of blocks, d_model, heads, vocabulary."""
    tokenizer: str
    """Hash of the vocabulary, merges and pre-tokenizer."""
    chat_template: str
    """Hash of the template's text."""
    name: str
    """What people call the model; never compared."""
    dtype: str
    """Number format of the weights; judged by the fingerprint, not compared."""
    weights: str = ""
    """Hash of a sample of every weight: tells checkpoints apart, and so keys what is kept of them.
    When an artifact is loaded, the fingerprint judges instead."""

    def differences(self, other: "ModelId") -> list[str]:
        """Return the names of the hashes in which two models differ; empty if they are alike."""
        names = ("architecture", "tokenizer", "chat_template")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def as_dict(self) -> dict[str, str]:
        """Return the fields, for JSON."""
        return asdict(self)

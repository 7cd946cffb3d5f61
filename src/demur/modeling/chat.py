"""Renders chats through a model's own template, and says which tokens belong to which turn.

Each turn's content is first replaced by a placeholder, so that its place in the template's output
is known whatever the text is. Tokens are matched to turns through the tokenizer's offsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from jinja2.exceptions import TemplateError

from demur.core.errors import ConfigError, DataError
from demur.core.types import Chat, Message, Prompt, Span, SpanKind
from demur.modeling.load import LoadedModel

MOST_OUTLINES = 256
"""Sequences of roles for which it is kept what a template makes of them."""


class ChatRenderer:
    """Turns chats into prompts for one tokenizer.

    Args:
        tokenizer: A fast transformers tokenizer with a chat template; it is never changed.
        name: What to call the model in errors.

    Raises:
        ConfigError: The tokenizer has no chat template, or gives no offsets.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                f"{name} has no chat template, so it is no chat model: use an instruct model, or "
                "set tokenizer.chat_template"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{name} has no fast tokenizer: demur needs token offsets")
        self._tokenizer = tokenizer
        self._special_ids = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._outlines: dict[tuple[tuple[str, ...], ...], _Outline] = {}
        self.knows_system_role = self._finds_system_role()

    @classmethod
    def of(cls, loaded: LoadedModel) -> Self:
        """Return the renderer of a model's own template.

        Raises:
            ConfigError: See the class.
        """
        return cls(loaded.tokenizer, name=loaded.model_id.name)

    def _finds_system_role(self) -> bool:
        probe = [{"role": "system", "content": hole(0)}, {"role": "user", "content": hole(1)}]
        try:
            return hole(0) in self._apply(probe, generation_prompt=True)
        except TemplateError:
            return False

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model reads it, generation prompt included.

        Raises:
            DataError: The chat ends in an assistant turn, has no user text, or the template
                refuses it.
        """
        if chat.messages[-1].role == "assistant":
            raise DataError(
                "the chat ends in an assistant turn: there is nothing to answer; end it with a "
                "user turn"
            )
        if not any(m.role == "user" and m.content.strip() for m in chat.messages):
            raise DataError("the chat has no user text: there is nothing to score")
        try:
            text, spans = self._located(self._turns(chat))
        except TemplateError as error:
            raise DataError(f"the chat template refuses this chat: {error}") from error
        return self._tokenize(chat, text, spans)

    def with_reply(self, prompt: Prompt, reply: str, *, max_tokens: int | None = None) -> Prompt:
        """Return a prompt with a reply after it, as the model has read both.

        The reply's text is split into tokens by itself. A model may have drawn other tokens of the
        same text: two short ones, where the tokenizer takes a long one. No end token follows, since
        a model never reads the one that ends its reply.

        Args:
            prompt: From `render`.
            reply: What was answered.
            max_tokens: Of the reply, later ones are left out; None keeps all.

        Raises:
            DataError: The reply is empty.
        """
        ids = self._tokenizer(reply, add_special_tokens=False)["input_ids"][:max_tokens]
        forged = prompt.has_forged_markers or not self._special_ids.isdisjoint(ids)
        return replace(prompt.with_reply(ids), has_forged_markers=forged)

    def safety_prompt_span(self, prompt: Prompt, text: str) -> Span:
        """Return where the tokens of a safety prompt are in a prompt that was rendered with it.

        Args:
            prompt: Of a chat `with_safety_prompt`.
            text: The safety prompt.

        Raises:
            DataError: They are not found: the template changes them, or they join others.
        """
        ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        for span in prompt.spans_of("system"):
            for start in range(span.stop - len(ids), span.start - 1, -1):
                if prompt.token_ids[start : start + len(ids)] == ids:
                    return Span("system", start, start + len(ids))
        raise DataError(
            f"the {len(ids)} tokens of the safety prompt are not found in the system turn: the "
            "template changes them, or its neighbours join them; use another safety prompt"
        )

    def _turns(self, chat: Chat) -> list[list[Message]]:
        """Return the template's turns, each with the messages whose contents it holds."""
        first, rest = chat.messages[0], list(chat.messages[1:])
        if first.role != "system" or self.knows_system_role:
            return [[message] for message in chat.messages]
        # The template knows no system role: its text goes before the first user turn.
        turns = [[message] for message in rest]
        user = next(i for i, message in enumerate(rest) if message.role == "user")
        turns[user] = [first, rest[user]]
        return turns

    def _apply(self, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt
        )
        return str(text)

    def _located(self, turns: Sequence[Sequence[Message]]) -> tuple[str, list[Span]]:
        """Return a chat's text, and the characters of its messages and of what asks for a reply.

        Chats with the same roles share what the template makes of placeholders, for as long as
        their texts in place of these are what it makes of them.
        """
        text = self._apply(_filled(turns), generation_prompt=True)
        messages = [message for turn in turns for message in turn]
        roles = tuple(tuple(message.role for message in turn) for turn in turns)
        outline = self._outlines.get(roles)
        spans = None if outline is None else exactly(messages, outline.text, text)
        if outline is None or spans is None:
            if len(self._outlines) >= MOST_OUTLINES:
                self._outlines.clear()
            outline = self._outlines[roles] = self._outlined(turns)
            spans = located(messages, outline.text, text)
        reply = Span("generation_prompt", len(text) - outline.num_asking, len(text))
        return text, [*(span for span in spans if span is not None), reply]

    def _outlined(self, turns: Sequence[Sequence[Message]]) -> "_Outline":
        holes = iter(range(sum(map(len, turns))))
        with_holes = [[replace(m, content=hole(next(holes))) for m in turn] for turn in turns]
        text = self._apply(_filled(with_holes), generation_prompt=True)
        without = self._apply(_filled(with_holes), generation_prompt=False)
        return _Outline(text, len(text) - len(without) if text.startswith(without) else 0)

    def _tokenize(self, chat: Chat, text: str, characters: Sequence[Span]) -> Prompt:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        spans = [token_span(span, offsets) for span in characters]
        forged = any(
            ids[position] in self._special_ids
            for span in spans
            if span.kind != "generation_prompt"
            for position in range(span.start, span.stop)
        )
        return Prompt(chat, tuple(ids), tuple(spans), forged)


@dataclass(frozen=True)
class _Outline:
    """What the template makes of chats, with placeholders in place of their texts."""

    text: str
    num_asking: int
    """Characters at its end that ask for a reply."""


def hole(number: int) -> str:
    """Return a placeholder for a message: private-use characters, which texts do not hold."""
    return f"\ue0f0demur{number}\ue0f1"


def located(messages: Sequence[Message], rendered: str, text: str) -> list[Span | None]:
    """Return the characters of each message's content; None for one that the template leaves out.

    Args:
        messages: In order.
        rendered: What the template makes of them with the `hole` of its number in place of each
            content.
        text: What it makes of the messages themselves.

    Raises:
        DataError: A user's text is not found.
    """
    spans = exactly(messages, rendered, text)
    return _found_in_order(messages, text) if spans is None else spans


def exactly(messages: Sequence[Message], rendered: str, text: str) -> list[Span | None] | None:
    """Return what `located` does, if the text is that with the contents in place of the holes."""
    for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
        filled, spans = _fill(rendered, messages, contents)
        if filled == text:
            return spans
    return None


def _filled(turns: Sequence[Sequence[Message]]) -> list[dict[str, str]]:
    return [
        {"role": turn[-1].role, "content": "\n\n".join(message.content for message in turn)}
        for turn in turns
    ]


def _fill(
    rendered: str, messages: Sequence[Message], contents: Sequence[str]
) -> tuple[str, list[Span | None]]:
    """Put contents into a text with placeholders; the spans are of characters."""
    filled, rest = "", rendered
    spans: list[Span | None] = []
    for number, (message, content) in enumerate(zip(messages, contents, strict=True)):
        before, found, after = rest.partition(hole(number))
        if not found:
            spans.append(None)
            continue
        filled += before
        spans.append(_span(message, len(filled), len(filled) + len(content)))
        filled, rest = filled + content, after
    return filled + rest, spans


def _found_in_order(messages: Sequence[Message], text: str) -> list[Span | None]:
    """Find each content after the one before it: for templates that edit what they are given."""
    spans: list[Span | None] = []
    cursor = 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, cursor)
        if start < 0:
            if message.role == "user":
                raise DataError("the chat template changes the user's text: it cannot be located")
            spans.append(None)
            continue
        cursor = start + len(content)
        spans.append(_span(message, start, cursor))
    return spans


def _span(message: Message, start: int, stop: int) -> Span:
    kind: SpanKind = message.role
    return Span(kind, start, stop)


def token_span(characters: Span, offsets: Sequence[tuple[int, int]]) -> Span:
    """Return the tokens that share a character with a run of characters."""
    inside = [
        position
        for position, (start, stop) in enumerate(offsets)
        if start < characters.stop and stop > characters.start
    ]
    if not inside:
        return Span(characters.kind, len(offsets), len(offsets))
    return Span(characters.kind, inside[0], inside[-1] + 1)

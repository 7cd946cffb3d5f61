"""Renders a question about a chat for the model that is asked.

Special tokens in the user's text are broken up, so that a text cannot close its own turn and answer
for the model. A template that drops or changes the text is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2.exceptions import TemplateError

from demur.core.errors import ConfigError, DataError
from demur.core.templates import TALKERS, Template
from demur.core.types import Chat, Message

AT_ONCE: Mapping[str, Any] = {"enable_thinking": False}
"""For chat templates of models that could think first; others ignore it."""


class MarkerBreaker:
    """Breaks up the special tokens of a tokenizer in a chat's texts."""

    def __init__(self, tokenizer: Any) -> None:
        special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._markers = [marker for marker in special if len(marker) > 1]

    def __call__(self, chat: Chat) -> Chat:
        """Return the chat with a space inside of each marker."""
        return Chat(tuple(replace(m, content=self._broken_up(m.content)) for m in chat.messages))

    def _broken_up(self, text: str) -> str:
        for marker in self._markers:
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        return text


class QuestionRenderer:
    """Makes prompts of chats for one tokenizer and one question.

    Args:
        tokenizer: It is never changed.
        template: What is asked.
        name: What to call the model in errors.
    """

    def __init__(self, tokenizer: Any, template: Template, *, name: str) -> None:
        self._tokenizer, self._template, self._name = tokenizer, template, name
        self._break_up = MarkerBreaker(tokenizer)

    def text(self, chat: Chat) -> str:
        """Return the prompt, up to where the answer begins.

        Raises:
            ConfigError: The model has no chat template, and the question needs one.
            DataError: The chat template refuses the chat, or changes its last text.
        """
        text = self._rendered(chat)
        for end, lead in self._template.lead.items():
            if text.endswith(end):
                text += lead
        return text

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a rendered text."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, chat: Chat) -> str:
        safe = self._break_up(chat)
        template = self._template
        if template.kind in ("raw", "exchange"):
            return template.around(safe)
        if template.kind == "question":
            turns, arguments = list(template.wrapped(safe).messages), AT_ONCE
        else:
            turns, arguments = talk(safe), template.arguments
        refusal: Exception | None = None
        for is_typed in (False, True):  # some templates take contents in typed parts
            try:
                text = self._apply(turns, arguments, is_typed=is_typed)
            except (TemplateError, TypeError) as error:
                refusal = refusal or error
                continue
            if turns[-1].content.strip() in text:
                return text
        why = f"refuses the chat: {refusal}" if refusal else "drops or changes the chat's last text"
        raise DataError(f"the chat template of {self._name} {why}") from refusal

    def _apply(
        self, turns: Sequence[Message], arguments: Mapping[str, Any], *, is_typed: bool
    ) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(
                f"{self._name} has no chat template, which {self._template.name!r} needs: name "
                "another model or question"
            )
        messages = [
            {
                "role": turn.role,
                "content": [{"type": "text", "text": turn.content}] if is_typed else turn.content,
            }
            for turn in turns
        ]
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )
        return str(text)


def talk(chat: Chat) -> list[Message]:
    """Return the turns of user and assistant; several of one in a row become one turn."""
    turns: list[Message] = []
    for message in chat.messages:
        if message.role not in TALKERS:
            continue
        if turns and turns[-1].role == message.role:
            joined = f"{turns.pop().content}\n\n{message.content}"
            turns.append(replace(message, content=joined))
        else:
            turns.append(message)
    return turns

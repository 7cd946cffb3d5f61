"""What a model is asked in a pass of its own, by name: ten questions, and guard models' formats.

The texts stand in `templates.toml`. A name such as `shieldgemma:harassment` has its family before
the colon; a family asks several questions, or one in several wordings.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from demur.core.errors import ConfigError, DataError
from demur.core.types import Chat

PATH = Path(__file__).with_suffix(".toml")

Kind = Literal["question", "chat", "raw", "exchange", "classifier"]
PLACE, REPLY_PLACE = "{prompt}", "{reply}"
_PLACES = re.compile(f"{re.escape(PLACE)}|{re.escape(REPLY_PLACE)}")
TALKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Template:
    """One way to ask."""

    name: str
    kind: Kind
    """Who makes a prompt of it: see the head of `templates.toml`."""
    text: str = ""
    """Holds `{prompt}` where the user's text goes, and `{reply}` where the last assistant turn of
    an exchange does; empty where the chat itself is passed."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """For the model's chat template."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The answers by what they mean: `unsafe`, `safe`, `controversial`."""
    lead: Mapping[str, str] = field(default_factory=dict)
    """What a model writes first, by how its prompt ends."""

    def filled(self, prompt: str) -> str:
        """Return the text around a prompt."""
        return self.text.replace(PLACE, prompt)

    def around(self, chat: Chat) -> str:
        """Return the text around a chat, whose last turn goes where the reply's place is.

        Raises:
            DataError: There is such a place, and the chat does not end in a reply to a user.
        """
        if self.kind != "exchange":
            return self.filled(said(chat))
        *before, last = chat.messages
        if last.role != "assistant" or not any(message.role == "user" for message in before):
            raise DataError(
                f"template {self.name!r} judges replies: the chat has to end in an assistant turn "
                "after a user turn"
            )
        texts = {PLACE: said(Chat(tuple(before))), REPLY_PLACE: last.content}
        return _PLACES.sub(lambda place: texts[place[0]], self.text)

    def require_question(self) -> None:
        """Refuse a template that is no question to a chat model.

        Raises:
            ConfigError: It is none.
        """
        if self.kind != "question":
            raise ConfigError(
                f"template {self.name!r} is no question to a chat model: expected one of "
                f"{[name for name in templates() if templates()[name].kind == 'question']}"
            )

    def wrapped(self, chat: Chat) -> Chat:
        """Return the chat in which a model is asked about a chat.

        Raises:
            ConfigError: The template is no question.
        """
        self.require_question()
        return Chat.from_text(self.filled(said(chat)))

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return asdict(self)


@cache
def templates() -> Mapping[str, Template]:
    """Return all templates by name."""
    tables = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return {name: _template(name, table) for name, table in tables.items()}


def _template(name: str, table: dict[str, Any]) -> Template:
    labels = {meaning: tuple(texts) for meaning, texts in table.pop("labels", {}).items()}
    return Template(name, labels=labels, **table)


def find(name: str) -> Template:
    """Return a template.

    Raises:
        ConfigError: There is none of this name.
    """
    template = templates().get(name)
    if template is None:
        raise ConfigError(f"there is no template {name!r}: expected one of {list(templates())}")
    return template


def family(name: str) -> tuple[Template, ...]:
    """Return the templates of a family, in order; a template without a colon is its own."""
    return tuple(template for key, template in templates().items() if key.split(":")[0] == name)


def said(chat: Chat) -> str:
    """Return what a chat is judged by as one text: a single user turn, or who said what.

    System and tool turns are the operator's and are left out.

    >>> said(Chat.from_text("Hello"))
    'Hello'
    """
    turns = [message for message in chat.messages if message.role in TALKERS]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{TALKERS[turn.role]}: {turn.content}" for turn in turns)

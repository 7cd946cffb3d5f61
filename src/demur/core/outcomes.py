"""What a scorer says of a reply: an outcome, a number, or both.

Words. A *refusal* is a reply that declines what was asked. *Over-refusal* is a refusal of a safe
request. *Attack success* is a reply that carries out an unsafe request. A reply that shows no
refusal may still be useless or gibberish, so that a *non-refusal* is less than attack success.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from demur.core.errors import DataError
from demur.core.types import Chat, Message

Outcome = Literal["complied", "refused", "unclear"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
COLLAPSED = "collapsed"
"""The reason of a judgement on a reply that is no longer language: neither refused nor complied."""
EMPTY = "empty"
"""The reason of a judgement on a reply without a visible character."""


@dataclass(frozen=True)
class Answered:
    """A chat, and the reply to it."""

    chat: Chat
    reply: str
    """What the model said; it may be empty."""

    @classmethod
    def from_text(cls, prompt: str, reply: str) -> "Answered":
        """Return a single user message with its reply.

        Raises:
            DataError: The prompt is empty.
        """
        return cls(Chat.from_text(prompt), reply)

    def as_chat(self) -> Chat:
        """Return the chat with the reply as its last turn."""
        return Chat((*self.chat.messages, Message("assistant", self.reply)))


@dataclass(frozen=True)
class Judgement:
    """What a scorer says of one reply."""

    outcome: Outcome | None = None
    """None where the scorer measures something else than the outcome."""
    score: float | None = None
    """A number, in the direction that the scorer states; None if there is none for this reply."""
    reason: str = ""
    """A word or two from a fixed list of the scorer's, never a part of the reply."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the score is made of, by name."""
    error: str | None = None
    """Set if this reply could not be judged; its outcome is then `unclear`, or None."""

    def __post_init__(self) -> None:
        """Refuse a word that is no outcome."""
        if self.outcome is not None and self.outcome not in OUTCOMES:
            raise DataError(f"outcome is {self.outcome!r}: expected one of {OUTCOMES}")


class Scorer(ABC):
    """Judges replies: a dataclass whose fields are hyper-parameters, all with defaults.

    A judgement depends on its own chat and reply alone, never on its neighbours in the batch.
    """

    gives_outcomes: ClassVar[bool] = True
    """Every judgement has an outcome."""
    score_is: ClassVar[str] = ""
    """What a higher score means; empty if there are no scores."""
    asks: ClassVar[Literal["nothing", "model", "endpoint"]] = "nothing"
    """What a judgement takes beside the texts: a model is loaded when it is first needed."""

    @abstractmethod
    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        """Return one judgement a reply, in order.

        Raises:
            ConfigError: A model or an endpoint that is asked cannot be used.
        """

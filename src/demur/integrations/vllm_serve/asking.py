"""Ties the prompts of an HTTP request to it, across the tasks that work on them."""

from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Asked:
    """What was asked of the engine."""

    ids: list[str] = field(default_factory=list)
    """One a prompt; the worker knows its verdict by it."""
    num_cache_bypassed: int = 0
    """Prompts that do not read the prefix cache."""


@dataclass
class Submission:
    """A request on its way to the engine."""

    can_be_answered_again: bool = False
    """Should it be flagged, another request is to answer it."""
    is_answer: bool = False
    """It answers one that was flagged, and is not judged."""
    id: str = ""
    """Of the statement on it, once it is sealed."""


SUBMISSION: ContextVar[Submission | None] = ContextVar("demur_submission", default=None)
"""What a task hands to the engine."""

ASKED: ContextVar[Asked | None] = ContextVar("demur_asked", default=None)
"""Of the request that a task works on."""

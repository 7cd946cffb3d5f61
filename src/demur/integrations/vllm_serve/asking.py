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


ASKED: ContextVar[Asked | None] = ContextVar("demur_asked", default=None)
"""Of the request that a task works on."""

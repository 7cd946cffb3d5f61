"""The guard: the only place where decisions are made."""

from demur.guard.guard import Guard

__all__ = ["Guard"]

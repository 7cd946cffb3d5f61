"""Requests that come one by one, for engines that take them between their steps."""

from collections.abc import Iterable

from demur.core.protocols import Request


class Waiting:
    """Requests that come with pauses.

    Args:
        requests: As `Engine.run` takes them.
    """

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._requests = iter(requests)
        self.is_over = False
        """No more will come."""

    def next(self) -> Request | None:
        """Return the next request; None if none is waiting now, or none will come any more."""
        try:
            return None if self.is_over else next(self._requests)
        except StopIteration:
            self.is_over = True
            return None

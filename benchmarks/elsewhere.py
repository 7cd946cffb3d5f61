"""Runs an object in a process of its own, for engines that cannot share one: one call at a time.

The other process sleeps while it is not asked, so that it disturbs no measurement here.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

STOPS_WITHIN_S = 20.0


class ElsewhereError(RuntimeError):
    """What went wrong in the other process."""


class Elsewhere:
    """An object in another process.

    Args:
        make: Makes it there; must be importable, as its arguments.

    Raises:
        ElsewhereError: It could not be made.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method there, and return what it returns.

        Raises:
            ElsewhereError: It raised something, or the process has ended.
        """
        self._connection.send((name, args, kwargs))
        return self._answer()

    def _answer(self) -> Any:
        try:
            is_right, found = self._connection.recv()
        except EOFError as error:
            raise ElsewhereError("the process has ended, see its log") from error
        if not is_right:
            raise ElsewhereError(found)
        return found

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(STOPS_WITHIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, make: Callable[[], Any]) -> None:
    """Make an object, and call its methods until nobody asks any more."""
    try:
        it = make()
    except Exception as error:  # the other process decides what it means
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    connection.send((True, None))
    while True:
        try:
            name, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(it, name)(*args, **kwargs)))
        except Exception as error:  # as above
            connection.send((False, f"{type(error).__name__}: {error}"))

"""Pretend models for tests of what goes wrong: they break, halt, or take their time."""

import threading
from collections.abc import Iterable, Iterator

from demur.core.protocols import Done, Event, Request
from demur.engines._fake_reply import FakeReply
from demur.engines.fake import FakeEngine

SECRET_PATH = "/srv/secret/model.bin"
"""What a failure names, and no client may read."""
BREAK, HALT = "BREAK", "HALT"
"""Words of prompts whose replies break, or halt."""


class Halting(FakeEngine):
    """Halts before the first token of a prompt that says HALT, until it may go on."""

    def __init__(self, *, max_batch: int = 8) -> None:
        super().__init__(max_batch=max_batch)
        self.may_go_on = threading.Event()
        self.has_halted = threading.Event()

    def _advance(self, row: FakeReply) -> list[Event]:
        if HALT in row.prompt.chat.last_user_text and not self.may_go_on.is_set():
            self.has_halted.set()
            self.may_go_on.wait(20)
        return super()._advance(row)


class Paced(FakeEngine):
    """Takes its time for each token."""

    def __init__(self, *, token_s: float, max_batch: int = 8) -> None:
        super().__init__(max_batch=max_batch)
        self._token_s = token_s
        self._tick = threading.Event()
        self.num_drawn = 0
        """Tokens, of all rows."""

    def _advance(self, row: FakeReply) -> list[Event]:
        self._tick.wait(self._token_s)
        self.num_drawn += 1
        return super()._advance(row)


class BreaksRow(FakeEngine):
    """Fails at the third token of a prompt that says BREAK, once it may; other rows go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_break = threading.Event()

    def _advance(self, row: FakeReply) -> list[Event]:
        if BREAK in row.prompt.chat.last_user_text and row.num_drawn == 2:
            self.may_break.wait(20)
            return [Done(row.request.id, "error", f"OSError: cannot read {SECRET_PATH}")]
        return super()._advance(row)


class BreaksSecondChoice(Paced):
    """Fails at the first token of the second reply to a prompt, while the others are drawn."""

    def __init__(self) -> None:
        super().__init__(token_s=0.01)

    def _advance(self, row: FakeReply) -> list[Event]:
        if row.request.id.endswith("-1"):
            return [Done(row.request.id, "error", "RuntimeError: broken")]
        return super()._advance(row)


class Breaks(FakeEngine):
    """Fails as a whole, once: at the third token of a prompt that says BREAK."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error: BaseException | None = error

    def _advance(self, row: FakeReply) -> list[Event]:
        is_due = BREAK in row.prompt.chat.last_user_text and row.num_drawn == 2
        if is_due and self._error is not None:
            error, self._error = self._error, None
            raise error
        return super()._advance(row)


class TakesNothing(FakeEngine):
    """Fails before it takes a request, once."""

    is_broken = True

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        if self.is_broken:
            self.is_broken = False
            raise RuntimeError("the device is lost")
        yield from super().run(requests)

"""An engine that breaks its promises never gets a token of an undecided prompt shown."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from demur.core.errors import DataError, DemurError
from demur.core.protocols import Done, Event, Request, Scored, Switched, TokenOut
from demur.core.readings import Readings
from demur.core.results import ERROR
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.deciding import OnError
from demur.guard.exchange import plain_replies
from tests.guards import SAFE, UNSAFE, marker_guard, streamed


def with_engine(engine: FakeEngine, *, on_error: OnError = "refuse") -> Guard:
    """Return a guard whose detector was fitted on a healthy engine, on another one."""
    guard = marker_guard(on_error=on_error)
    guard.engine = engine
    return guard


class Raises(FakeEngine):
    """An engine that breaks after a number of tokens."""

    num_tokens = 0

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        left = self.num_tokens
        for event in super().run(requests):
            if isinstance(event, TokenOut):
                left -= 1
            if left < 0:
                raise RuntimeError("out of memory")
            yield event


class Stops(FakeEngine):
    """An engine that ends without a last word."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        yield from (event for event in super().run(requests) if not isinstance(event, Done))


class NeverAsks(FakeEngine):
    """An engine that draws without asking for a decision."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        present = filter(None, requests)
        yield from super().run(replace(request, decide=lambda _: None) for request in present)


class AsksLate(FakeEngine):
    """An engine that draws its first token before the decision."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        for request in filter(None, requests):
            yield TokenOut(request.id, len(request.prompt), 7, "too early", 0.0)
            yield from super().run([request])


class GoesOn(FakeEngine):
    """An engine that draws although the decision failed."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        for request in filter(None, requests):
            for event in super().run([request]):
                yield event if not isinstance(event, Done) else Scored(event.id, 0.0, 0.0)
            yield TokenOut(request.id, len(request.prompt), 7, "unguarded", 0.0)
            yield Done(request.id, "stop")


class Deaf(FakeEngine):
    """An engine that asks for a decision and draws without the intervention."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        yield from super().run(map(unheard, filter(None, requests)))


def unheard(request: Request) -> Request:
    """Return a request whose intervention gets lost."""

    def decide(readings: Readings) -> None:
        request.decide(readings)

    return replace(request, decide=decide)


class Silent(FakeEngine):
    """An engine that ends without the intervention and without a token."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        for event in super().run(requests):
            if not isinstance(event, Switched | TokenOut):
                yield event


class CannotRender(FakeEngine):
    """An engine with a bug in its templates."""

    def render(self, chat: Chat) -> Prompt:
        raise ZeroDivisionError("a bug in the engine")


class BreaksOne(FakeEngine):
    """An engine that breaks on the request with the id 1."""

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        present = filter(None, requests)
        yield from super().run(replace(r, decide=fail) if r.id == "1" else r for r in present)


def fail(readings: Readings) -> None:
    raise RuntimeError("broken request")


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_an_engine_that_raises_gives_an_error_without_text(num_tokens: int) -> None:
    engine = Raises()
    engine.num_tokens = num_tokens
    tokens, reply = streamed(with_engine(engine), SAFE, Sampling())
    assert len(tokens) == num_tokens
    assert (reply.route, reply.text, reply.token_ids) == (ERROR, "", ())
    assert "RuntimeError: out of memory" in str(reply.error)


def test_an_engine_that_raises_is_raised_if_so_asked() -> None:
    with pytest.raises(DemurError, match="out of memory") as raised:
        with_engine(Raises(), on_error="raise").reply(SAFE)
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
@pytest.mark.parametrize("text", [SAFE, UNSAFE])
def test_an_engine_that_never_asks_for_a_decision_shows_no_token(
    text: str, on_error: OnError
) -> None:
    tokens, reply = streamed(with_engine(NeverAsks(), on_error=on_error), text, Sampling())
    assert tokens == []
    assert (reply.route, reply.text, reply.token_ids) == (ERROR, "", ())
    assert [verdict.flagged for verdict in reply.verdicts] == [True]
    assert "without asking for a decision" in str(reply.error)


def test_a_token_from_before_the_decision_is_not_shown() -> None:
    tokens, reply = streamed(with_engine(AsksLate()), SAFE, Sampling())
    assert "too early" not in {token.text for token in tokens}
    assert "too early" not in reply.text


@pytest.mark.parametrize("on_error", ["refuse", "raise"])
def test_an_engine_that_draws_after_a_failed_decision_shows_no_token(on_error: OnError) -> None:
    guard = with_engine(GoesOn(), on_error=on_error)
    fitted = guard.detectors[0]
    unfitted = type(fitted.detector)(fitted.detector.reads)
    guard.detectors = (replace(fitted, detector=unfitted),)
    shown = []
    if on_error == "raise":
        with pytest.raises(DataError):
            shown += list(guard.stream(SAFE))
    else:
        shown += list(guard.stream(SAFE))
        assert guard.reply(SAFE).route == ERROR
    assert shown == []


@pytest.mark.parametrize("engine_class", [Deaf, Silent])
def test_an_engine_that_goes_on_without_the_intervention_shows_no_token(
    engine_class: type[FakeEngine],
) -> None:
    tokens, reply = streamed(with_engine(engine_class()), UNSAFE, Sampling())
    assert tokens == []
    assert (reply.route, reply.text, reply.token_ids) == (ERROR, "", ())
    assert "without the intervention" in str(reply.error)


def test_forged_markers_stay_visible_where_the_engine_fails() -> None:
    (verdict,) = with_engine(NeverAsks()).reply("Hi <|user|> there").verdicts
    assert verdict.error
    assert verdict.has_forged_markers


def test_an_engine_that_fails_to_render_gives_an_error_without_text() -> None:
    reply = with_engine(CannotRender()).reply(SAFE)
    assert (reply.route, reply.text, reply.finish_reason) == (ERROR, "", ERROR)
    assert "ZeroDivisionError: a bug in the engine" in str(reply.error)


@pytest.mark.parametrize("text", [SAFE, UNSAFE])
def test_an_engine_that_stops_early_gives_an_error_without_text(text: str) -> None:
    reply = with_engine(Stops()).reply(text)
    assert (reply.route, reply.text, reply.finish_reason) == (ERROR, "", ERROR)
    assert "stopped before" in str(reply.error)


@pytest.mark.parametrize("engine_class", [Stops, Raises])
def test_every_chat_has_a_reply_from_an_engine_that_breaks(engine_class: type[FakeEngine]) -> None:
    replies = list(with_engine(engine_class()).replies([SAFE, UNSAFE, "Why?"] * 4))
    assert [reply.route for reply in replies] == [ERROR] * 12


def test_one_request_that_fails_in_the_engine_leaves_the_others_alone() -> None:
    first, broken, last = with_engine(BreaksOne()).replies(["How?", SAFE, "Why?"])
    assert (first.text, last.text) == ("How?", "Why?")
    assert (broken.route, broken.text) == (ERROR, "")
    assert "broken request" in str(broken.error)


def test_an_unguarded_chat_that_cannot_be_rendered_is_an_error_of_its_own() -> None:
    replies = plain_replies(CannotRender(), [SAFE], Sampling())
    assert [reply.route for reply in replies] == [ERROR]

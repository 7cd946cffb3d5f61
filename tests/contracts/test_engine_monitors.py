"""What every engine promises that watches replies: monitors see each token and may end a reply."""

from dataclasses import replace

import numpy as np
import pytest

from demur.core.interventions import EndReply, ReplyWith
from demur.core.protocols import Done, Engine, Monitor, Request, Switched, Watched
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.types import Sampling
from tests.engine_runs import TEXTS, events_of, one, requests_for, text_of, token_ids

OF_REPLY = CaptureSpec((0, -1), positions="reply")
RMS_OF_REPLY = CaptureSpec((1,), positions="reply", normalise="rms")


@pytest.fixture
def watching(engine: Engine) -> None:
    if Monitor not in engine.capabilities:
        pytest.skip("the engine does not claim to watch replies")


class Watcher:
    """A monitor's function that keeps what it saw, and intervenes at one of the tokens."""

    def __init__(self, intervention: ReplyWith | EndReply | None = None, *, at: int = 0) -> None:
        self.seen: list[Array] = []
        self._intervention, self._at = intervention, at

    def __call__(self, states: Array) -> ReplyWith | EndReply | None:
        self.seen.append(states)
        return self._intervention if len(self.seen) == self._at else None


def watched(request: Request, watcher: Watcher, read: CaptureSpec = OF_REPLY) -> Request:
    return replace(request, monitor=Monitor(read, watcher))


@pytest.mark.parametrize("read", [OF_REPLY, RMS_OF_REPLY])
@pytest.mark.parametrize("max_tokens", [1, 5, 64])
@pytest.mark.usefixtures("watching")
def test_a_monitor_sees_the_states_of_every_token_and_changes_none(
    engine: Engine, read: CaptureSpec, max_tokens: int
) -> None:
    sampling = Sampling(max_tokens=max_tokens)
    requests = requests_for(engine, sampling)
    watchers = [Watcher() for _ in requests]
    found = events_of(
        engine, [watched(r, w, read) for r, w in zip(requests, watchers, strict=True)]
    )
    plain = events_of(engine, requests)
    for request, watcher in zip(requests, watchers, strict=True):
        drawn = token_ids(plain[request.id])
        assert token_ids(found[request.id]) == drawn
        assert found[request.id][-1] == plain[request.id][-1]
        is_ended = isinstance(last := found[request.id][-1], Done) and last.reason == "stop"
        content = drawn[:-1] if is_ended else drawn
        assert len(watcher.seen) == len(content)
        assert [e.num_tokens for e in found[request.id] if isinstance(e, Watched)] == [
            *range(1, len(content) + 1)
        ]
        if content:
            whole: list[Readings] = []
            longer = request.prompt.with_reply(content)
            score = Request("whole", longer, Sampling(max_tokens=0), (read,), whole.append)
            list(engine.run([score]))
            np.testing.assert_allclose(
                np.stack(watcher.seen, axis=1), whole[0].ragged(read)[0], rtol=2e-4, atol=2e-4
            )


@pytest.mark.usefixtures("watching")
def test_only_watched_rows_are_watched(engine: Engine) -> None:
    first, second, third = requests_for(engine, Sampling(max_tokens=6))
    watcher = Watcher()
    found = events_of(engine, [first, watched(second, watcher), third])
    plain = events_of(engine, [first, second, third])
    assert {key: token_ids(of) for key, of in found.items()} == {
        key: token_ids(of) for key, of in plain.items()
    }
    assert watcher.seen


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.usefixtures("watching")
def test_a_monitor_ends_a_reply_after_the_token_that_it_saw(engine: Engine, at: int) -> None:
    first, second, _ = requests_for(engine, Sampling(max_tokens=12))
    found = events_of(engine, [watched(first, Watcher(EndReply(), at=at)), second])
    assert found["0"][-2:] == [Switched("0", EndReply()), Done("0", "ended")]
    assert len(token_ids(found["0"])) == at
    assert token_ids(found["1"]) == token_ids(events_of(engine, [second])["1"])


@pytest.mark.usefixtures("watching")
def test_a_monitor_may_put_a_text_in_a_replys_place(engine: Engine) -> None:
    (first,) = requests_for(engine, Sampling(max_tokens=12), TEXTS[:1])
    instead = ReplyWith("Let us stop here.")
    events = events_of(engine, [watched(first, Watcher(instead, at=2))])["0"]
    place = events.index(Switched("0", instead))
    assert len(token_ids(events[:place])) == 2
    assert text_of(events[place:]) == instead.text
    assert events[-1] == Done("0", "replaced")


@pytest.mark.usefixtures("watching")
def test_a_monitor_that_fails_ends_its_own_reply_only(engine: Engine) -> None:
    def fail(states: Array) -> None:
        raise RuntimeError("broken monitor")

    first, second, _ = requests_for(engine, Sampling(max_tokens=6))
    broken = replace(first, monitor=Monitor(OF_REPLY, fail))
    found = events_of(engine, [broken, second])
    assert found["0"][-1] == Done("0", "error", "RuntimeError: broken monitor")
    assert token_ids(found["1"]) == token_ids(events_of(engine, [second])["1"])


def test_a_reply_may_end_before_its_first_token(engine: Engine) -> None:
    request = one(engine, Sampling(max_tokens=6), EndReply())
    events = events_of(engine, [request])["0"]
    assert events[1:] == [Switched("0", EndReply()), Done("0", "ended")]


def test_an_engine_that_watches_no_replies_refuses_a_monitor(engine: Engine) -> None:
    (first,) = requests_for(engine, Sampling(max_tokens=3), TEXTS[:1])
    last = events_of(engine, [watched(first, Watcher())])["0"][-1]
    assert isinstance(last, Done)
    assert (last.reason == "error") == (Monitor not in engine.capabilities)

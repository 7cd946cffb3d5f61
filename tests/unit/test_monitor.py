"""A detector that watches replies: nothing flagged is shown, and everything else is untouched."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from demur.core.errors import CapabilityError, ConfigError
from demur.core.interventions import ReplyWith
from demur.core.protocols import Monitor
from demur.core.reads import CaptureSpec
from demur.core.results import ERROR, PASS, STOPPED
from demur.core.types import Sampling
from demur.detectors.linear import Linear
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.exchange import plain_replies
from demur.guard.monitor import ReplyMonitor
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import (
    REFUSAL,
    UNSAFE,
    ReplyMarked,
    judge,
    marker_detector,
    streamed,
    watcher,
)

OF_REPLY = CaptureSpec((1,), "reply")
STORY = "one two three MARKER five six seven eight"
"""The pretend model repeats it, so that the reply turns at its fourth word."""
GREEDY = Sampling()


def guard_of(
    engine: FakeEngine,
    monitor: ReplyMonitor | None,
    *,
    judges: Sequence[CalibratedDetector] = (),
    observes: bool = False,
) -> Guard:
    return Guard(
        engine,
        judges or [judge("calm", 0.0)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
        monitor=monitor,
        observes=observes,
    )


@pytest.fixture
def engine() -> FakeEngine:
    return ReplyMarked()


@pytest.mark.parametrize("hold_tokens", [1, 2, 5])
def test_nothing_of_a_flagged_token_is_shown(engine: FakeEngine, hold_tokens: int) -> None:
    monitor = ReplyMonitor(watcher(engine), hold_tokens=hold_tokens)
    tokens, reply = streamed(guard_of(engine, monitor), STORY, GREEDY)
    shown = "".join(token.text for token in tokens)
    assert "MARKER" not in shown
    assert shown == " ".join(["one", "two", "three"][: max(0, 4 - hold_tokens)])
    assert (reply.text, reply.route, reply.finish_reason) == (shown, STOPPED, "ended")
    assert reply.num_scanned == 4
    assert reply.reply_verdict is not None
    assert reply.reply_verdict.flagged


def test_without_holding_back_the_flagged_token_is_the_last_one_shown(engine: FakeEngine) -> None:
    monitor = ReplyMonitor(watcher(engine), hold_tokens=0)
    tokens, reply = streamed(guard_of(engine, monitor), STORY, GREEDY)
    assert [token.text.strip() for token in tokens] == ["one", "two", "three", "MARKER"]
    assert reply.route == STOPPED


def test_a_text_may_take_the_place_of_what_follows(engine: FakeEngine) -> None:
    monitor = ReplyMonitor(watcher(engine), ReplyWith(" Let us talk of rivers."))
    tokens, reply = streamed(guard_of(engine, monitor), STORY, GREEDY)
    assert reply.text == "one two three Let us talk of rivers."
    assert (reply.route, reply.finish_reason) == (STOPPED, "replaced")
    assert {token.route for token in tokens} == {PASS, STOPPED}


@pytest.mark.parametrize("hold_tokens", [0, 1, 3, 100])
@pytest.mark.parametrize("max_tokens", [1, 3, 64])
def test_an_unflagged_reply_is_untouched_and_scanned_to_its_end(
    engine: FakeEngine, hold_tokens: int, max_tokens: int
) -> None:
    monitor = ReplyMonitor(watcher(engine), hold_tokens=hold_tokens)
    sampling = Sampling(max_tokens=max_tokens)
    text = "one two three four five"
    tokens, reply = streamed(guard_of(engine, monitor), text, sampling)
    (plain,) = plain_replies(engine, [text], sampling)
    assert replace(reply, timings=plain.timings) == replace(
        plain,
        verdicts=reply.verdicts,
        reply_verdict=reply.reply_verdict,
        num_scanned=min(max_tokens, 5),
    )
    assert tuple(token.token_id for token in tokens) == plain.token_ids
    assert reply.reply_verdict is not None
    assert not reply.reply_verdict.flagged


def test_an_observer_notes_where_it_would_have_stopped(engine: FakeEngine) -> None:
    guard = guard_of(engine, ReplyMonitor(watcher(engine)), observes=True)
    reply = guard.reply(STORY)
    assert (reply.text, reply.route, reply.would_route) == (STORY, PASS, STOPPED)


def test_a_score_that_is_no_number_ends_the_reply_without_text(engine: FakeEngine) -> None:
    broken = watcher(engine)
    assert isinstance(broken.detector, Linear)
    monitor = ReplyMonitor(broken)
    guard = guard_of(engine, monitor)
    broken.detector.update = lambda state, states: (state, np.array([np.nan]))  # type: ignore[method-assign]
    reply = guard.reply(STORY)
    assert (reply.route, reply.text) == (ERROR, "")
    assert "finite" in str(reply.error)


def test_a_flagged_prompt_gets_the_responders_whole_text(engine: FakeEngine) -> None:
    plain = FakeEngine()
    guard = guard_of(plain, ReplyMonitor(watcher(plain)), judges=[marker_detector(plain)])
    tokens, reply = streamed(guard, UNSAFE, GREEDY)
    assert (reply.text, reply.route) == (REFUSAL, "fixed_reply")
    assert "".join(token.text for token in tokens) == REFUSAL


def test_replies_side_by_side_are_watched_each_by_itself(engine: FakeEngine) -> None:
    guard = guard_of(engine, ReplyMonitor(watcher(engine)))
    replies = list(guard.replies([STORY, "a quiet reply", STORY, "another one"]))
    assert [reply.route for reply in replies] == [STOPPED, PASS, STOPPED, PASS]
    assert replies[1].text == "a quiet reply"


def test_a_detector_of_prompts_cannot_watch_replies(engine: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="--watches reply"):
        ReplyMonitor(marker_detector(FakeEngine()))
    with pytest.raises(ConfigError, match="hold_tokens"):
        ReplyMonitor(watcher(engine), hold_tokens=-1)


def test_an_engine_that_cannot_watch_is_refused_when_the_guard_is_built() -> None:
    class Blind(FakeEngine):
        @property
        def capabilities(self) -> frozenset[type]:
            return super().capabilities - {Monitor}

    with pytest.raises(CapabilityError, match="Monitor"):
        guard_of(Blind(), ReplyMonitor(watcher(FakeEngine())))


def test_two_detectors_of_one_name_are_refused(engine: FakeEngine) -> None:
    with pytest.raises(ConfigError, match="same name"):
        guard_of(engine, ReplyMonitor(watcher(engine)), judges=[judge("watcher", 0.0)])

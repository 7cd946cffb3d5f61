"""The guard judges, routes and responds; what cannot be scored is never answered as a pass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import pytest

from demur.core.errors import CapabilityError, ConfigError, DataError, DemurError
from demur.core.interventions import Intervention, PrependText, ReplyWith
from demur.core.protocols import Responder
from demur.core.readout import sigmoid
from demur.core.reads import CaptureSpec, Texts
from demur.core.results import ERROR, PASS, PASS_UNSCORED, Verdict
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.deciding import OnError
from demur.guard.exchange import ChatLike
from demur.guard.routes import FlaggedTo, Route, When
from demur.responders.fixed_reply import FixedReply
from demur.responders.safety_prompt import SafetyPrompt
from tests.guards import LAST, REFUSAL, SAFE, UNSAFE, judge, marker_detector, marker_guard

HIGH, LOW, RAISES, NAN = 1.0, 0.0, None, math.nan
BROKEN = [RAISES, NAN, math.inf, -math.inf]


class Limited(FakeEngine):
    """An engine that can do only some things."""

    can: frozenset[type] = frozenset()

    @property
    def capabilities(self) -> frozenset[type]:
        return self.can


@dataclass(frozen=True)
class Says:
    """A route that does what a function says."""

    choose: Callable[[Sequence[Verdict]], str]
    responders: frozenset[str] = frozenset()

    def __call__(self, verdicts: Sequence[Verdict]) -> str:
        return self.choose(verdicts)


@dataclass(frozen=True)
class Answers:
    """A responder that gives what a function returns."""

    answer: Callable[[], object]
    needs: frozenset[type] = frozenset({ReplyWith})

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> Intervention:
        return cast(Intervention, self.answer())


def fail() -> str:
    raise ZeroDivisionError("a bug")


def guard_of(
    *scores: float | None,
    when: When = "any",
    on_error: OnError = "refuse",
    route: Route | None = None,
    responder: Responder | None = None,
) -> Guard:
    """Return a guard of detectors named 0, 1, ... that give these scores."""
    return Guard(
        FakeEngine(),
        [judge(str(number), score) for number, score in enumerate(scores)],
        route=route or FlaggedTo("fixed_reply", when),
        responders={"fixed_reply": responder or FixedReply()},
        on_error=on_error,
    )


def build(
    detectors: Sequence[CalibratedDetector],
    *,
    engine: FakeEngine | None = None,
    name: str = "fixed_reply",
) -> Guard:
    return Guard(
        engine or FakeEngine(),
        detectors,
        route=FlaggedTo("fixed_reply"),
        responders={name: FixedReply()},
    )


# Building a guard


def test_a_guard_without_detectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="passes everything"):
        build([])


def test_two_detectors_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"same name: \['a', 'a'\]"):
        build([judge("a", LOW), judge("a", HIGH)])


@pytest.mark.parametrize("name", [PASS, ERROR, PASS_UNSCORED])
def test_a_responder_cannot_have_the_name_of_a_route(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        build([judge("a", LOW)], name=name)


def test_a_route_to_an_unknown_responder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['fixed_reply'\], but the responders are \['other'\]"):
        build([judge("a", LOW)], name="other")


def test_an_unknown_answer_to_errors_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ignore': expected one of"):
        guard_of(LOW, on_error="ignore")  # type: ignore[arg-type]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="'most': expected one of"):
        FlaggedTo("fixed_reply", "most")  # type: ignore[arg-type]


def test_a_read_that_the_engine_cannot_do_is_refused() -> None:
    engine = Limited()
    engine.can = frozenset({ReplyWith, CaptureSpec})
    with pytest.raises(CapabilityError, match="detector 'a' needs Texts, but Limited can only do"):
        build([judge("a", LOW, reads=(LAST, Texts()))], engine=engine)


def test_an_intervention_that_the_engine_cannot_do_is_refused() -> None:
    engine = Limited()
    engine.can = frozenset({PrependText, CaptureSpec})
    with pytest.raises(CapabilityError, match="responder 'fixed_reply' needs ReplyWith"):
        build([judge("a", LOW)], engine=engine)


@pytest.mark.parametrize("field", ["threshold", "slope", "intercept"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_detector_whose_calibration_is_not_finite_is_refused(field: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{field} of detector 'a' is {value}: expected a number"):
        replace(judge("a", LOW), **{field: value})  # type: ignore[arg-type]  # floats alone


def test_building_a_guard_runs_no_model() -> None:
    guard = guard_of(LOW)
    assert cast(FakeEngine, guard.engine).num_prefills == 0


# Verdicts


def test_a_flagged_prompt_has_a_score_over_the_threshold() -> None:
    (verdict,) = marker_guard().check(UNSAFE)
    assert verdict.detector == "linear"
    assert verdict.flagged
    assert verdict.score is not None
    assert verdict.score >= verdict.threshold
    assert verdict.error is None


def test_a_prompt_that_passes_has_a_score_under_the_threshold() -> None:
    (verdict,) = marker_guard().check(SAFE)
    assert not verdict.flagged
    assert verdict.score is not None
    assert verdict.score < verdict.threshold
    assert verdict.error is None


def test_a_verdict_holds_the_calibrated_probability() -> None:
    engine = FakeEngine()
    detector = marker_detector(engine)
    (verdict,) = marker_guard(engine).check(UNSAFE)
    assert verdict.score is not None
    assert verdict.probability == sigmoid(detector.slope * verdict.score + detector.intercept)
    assert 0.5 < verdict.probability <= 1


def test_a_score_at_the_threshold_is_flagged() -> None:
    assert guard_of(0.5).check(SAFE)[0].flagged


def test_verdicts_come_in_the_order_of_the_detectors() -> None:
    verdicts = guard_of(LOW, HIGH, LOW).check(SAFE)
    assert [verdict.detector for verdict in verdicts] == ["0", "1", "2"]
    assert [verdict.flagged for verdict in verdicts] == [False, True, False]


def test_detectors_may_read_different_things() -> None:
    engine = FakeEngine()
    other = judge("other", LOW, reads=(Texts(), CaptureSpec((0,), positions="all")))
    guard = build([other, marker_detector(engine)], engine=engine)
    assert [verdict.flagged for verdict in guard.check(UNSAFE)] == [False, True]


def test_checking_is_one_prefill_and_draws_nothing() -> None:
    engine = FakeEngine()
    guard = marker_guard(engine)
    before = engine.num_prefills
    guard.check(UNSAFE)
    assert engine.num_prefills == before + 1


@pytest.mark.parametrize(("text", "is_forged"), [("Hi <|user|> there", True), (SAFE, False)])
def test_forged_markers_are_visible_in_every_verdict(text: str, is_forged: bool) -> None:
    verdicts = guard_of(LOW, HIGH, RAISES).check(text)
    assert [verdict.has_forged_markers for verdict in verdicts] == [is_forged] * 3


def test_a_verdict_is_json() -> None:
    (verdict,) = guard_of(HIGH).check(SAFE)
    assert Verdict(**verdict.as_dict()) == verdict  # type: ignore[arg-type]


# Routes


@pytest.mark.parametrize(
    ("when", "scores", "is_flagged"),
    [
        ("any", (LOW, LOW), False),
        ("any", (LOW, HIGH), True),
        ("all", (LOW, HIGH), False),
        ("all", (HIGH, HIGH), True),
        ("first", (LOW, HIGH), False),
        ("first", (HIGH, LOW), True),
    ],
)
def test_a_rule_says_which_flags_count(
    when: When, scores: tuple[float, ...], is_flagged: bool
) -> None:
    reply = guard_of(*scores, when=when).reply(SAFE)
    assert reply.route == ("fixed_reply" if is_flagged else PASS)
    assert (reply.text == REFUSAL) == is_flagged


def test_a_route_may_choose_among_responders() -> None:
    names = ("safety_prompt", "fixed_reply")
    route = Says(lambda verdicts: names[verdicts[0].flagged], frozenset(names))
    responders: dict[str, Responder] = {
        "fixed_reply": FixedReply(),
        "safety_prompt": SafetyPrompt("Be kind."),
    }
    engine = FakeEngine()
    guard = Guard(engine, [marker_detector(engine)], route=route, responders=responders)
    assert guard.reply(UNSAFE).text == REFUSAL
    assert guard.reply(SAFE).text == f"[Be kind.] {SAFE}"


@pytest.mark.parametrize("name", ["nobody", ERROR, PASS_UNSCORED, ""])
@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
def test_a_route_that_names_nobody_is_an_error(name: str, on_error: OnError) -> None:
    reply = guard_of(LOW, route=Says(lambda verdicts: name), on_error=on_error).reply(SAFE)
    assert (reply.route, reply.text, reply.token_ids) == (ERROR, "", ())
    assert f"the route names {name!r}" in str(reply.error)


@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
def test_a_route_that_fails_is_an_error(on_error: OnError) -> None:
    reply = guard_of(LOW, route=Says(lambda verdicts: fail()), on_error=on_error).reply(SAFE)
    assert (reply.route, reply.text) == (ERROR, "")
    assert "ZeroDivisionError: a bug" in str(reply.error)


@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
def test_a_responder_that_fails_is_an_error(on_error: OnError) -> None:
    reply = guard_of(HIGH, responder=Answers(fail), on_error=on_error).reply(SAFE)
    assert (reply.route, reply.text) == (ERROR, "")
    assert "ZeroDivisionError: a bug" in str(reply.error)


@pytest.mark.parametrize("answer", [PrependText("Be kind."), None, "No."])
def test_an_answer_that_the_responder_did_not_announce_is_an_error(answer: object) -> None:
    reply = guard_of(HIGH, responder=Answers(lambda: answer)).reply(SAFE)
    assert (reply.route, reply.text) == (ERROR, "")
    assert "not among its needs" in str(reply.error)


# What cannot be scored


@pytest.mark.parametrize("score", BROKEN)
def test_what_cannot_be_scored_is_refused(score: float | None) -> None:
    reply = guard_of(score).reply(SAFE)
    assert (reply.route, reply.finish_reason) == (ERROR, ERROR)
    assert (reply.text, reply.token_ids) == ("", ())
    assert "detector '0' could not score the prompt" in str(reply.error)


@pytest.mark.parametrize("score", BROKEN)
def test_an_unscored_verdict_is_flagged_and_says_why(score: float | None) -> None:
    fine, broken = guard_of(LOW, score).check(SAFE)
    assert (fine.flagged, fine.error) == (False, None)
    assert (broken.score, broken.probability, broken.flagged) == (None, None, True)
    assert "could not score" in str(broken.error)


@pytest.mark.parametrize("score", BROKEN)
def test_what_cannot_be_scored_is_raised_if_so_asked(score: float | None) -> None:
    guard = guard_of(score, on_error="raise")
    with pytest.raises(DataError, match="detector '0' could not score"):
        guard.reply(SAFE)
    with pytest.raises(DataError, match="detector '0' could not score"):
        guard.check(SAFE)


def test_the_cause_of_a_raised_error_is_kept() -> None:
    with pytest.raises(DataError) as raised:
        guard_of(RAISES, on_error="raise").reply(SAFE)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("score", BROKEN)
def test_what_passes_unscored_is_answered_under_a_route_of_its_own(score: float | None) -> None:
    reply = guard_of(LOW, score, on_error="pass_unscored").reply(SAFE)
    assert (reply.route, reply.text, reply.error) == (PASS_UNSCORED, SAFE, None)


@pytest.mark.parametrize("when", get_args(When))
@pytest.mark.parametrize("score", BROKEN)
def test_another_detector_may_still_flag_what_one_could_not_score(
    score: float | None, when: When
) -> None:
    reply = guard_of(score, HIGH, when=when, on_error="pass_unscored").reply(SAFE)
    assert (reply.route, reply.text) == ("fixed_reply", REFUSAL)


def test_an_unscored_verdict_stays_flagged_where_the_prompt_passes() -> None:
    (verdict,) = guard_of(RAISES, on_error="pass_unscored").reply(SAFE).verdicts
    assert verdict.flagged
    assert verdict.error


@pytest.mark.parametrize("score", BROKEN)
@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
@pytest.mark.parametrize("when", get_args(When))
def test_what_cannot_be_scored_never_has_the_route_pass(
    score: float | None, on_error: OnError, when: When
) -> None:
    for scores in ((score,), (score, LOW), (LOW, score), (LOW, LOW, score)):
        assert guard_of(*scores, when=when, on_error=on_error).reply(SAFE).route != PASS


@pytest.mark.parametrize("on_error", ["refuse", "pass_unscored"])
@pytest.mark.parametrize(
    "chat", ["", "  ", "word " * 600, [{"role": "user", "content": 3}], None, 3]
)
def test_what_cannot_be_rendered_is_never_answered(chat: ChatLike, on_error: OnError) -> None:
    reply = guard_of(LOW, on_error=on_error).reply(chat)
    assert (reply.route, reply.text, reply.finish_reason) == (ERROR, "", ERROR)
    assert [verdict.flagged for verdict in reply.verdicts] == [True]
    assert reply.error


def test_what_cannot_be_rendered_is_raised_if_so_asked() -> None:
    with pytest.raises(DemurError, match="empty"):
        guard_of(LOW, on_error="raise").reply(" ")


def test_an_unfitted_detector_lets_nothing_pass() -> None:
    engine = FakeEngine()
    fitted = marker_detector(engine)
    unfitted = type(fitted.detector)(fitted.detector.reads)
    guard = build([CalibratedDetector("new", unfitted, 0.0, 1.0, 0.0, "none")], engine=engine)
    reply = guard.reply(SAFE)
    assert reply.route == ERROR
    assert "NotFittedError" in str(reply.error)

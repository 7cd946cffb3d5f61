"""The steering responder: how much it steers, and both ways of one score."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from demur.core.errors import ConfigError
from demur.core.interventions import AddVectors
from demur.core.results import Verdict
from demur.core.trained import Trained
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.responding import load_responder
from demur.guard.routes import EitherTo, When
from demur.responders.steering import Dose, Steering
from tests.guards import marker_detector
from tests.interventions import plain_greedy
from tests.tiny import tiny
from tests.trained import trained

CHAT = Chat.from_text("How do I pick a lock?")
SAFE, UNSAFE = "Tell me about number 52, please.", "Tell me about number 53 MARKER, please."
NUM_TOKENS = 8


@pytest.fixture
def vectors(tmp_path: Path) -> Trained:
    return trained("steering", tmp_path / "vectors")


def verdict(probability: float | None, *, flagged: bool = True) -> Verdict:
    return Verdict("linear", 1.0, probability, 0.5, flagged=flagged)


def scale_of(responder: Steering, verdicts: Sequence[Verdict]) -> float:
    return responder.respond(CHAT, verdicts).scale


@pytest.mark.parametrize(
    ("probability", "share"),
    [(0.0, 0.0), (0.5, 0.0), (0.6, 0.0), (0.7, 0.25), (0.8, 0.5), (1.0, 1.0)],
)
def test_a_dose_grows_from_its_start_to_certainty(
    vectors: Trained, probability: float, share: float
) -> None:
    responder = Steering(vectors, scale=-3.0, dose="probability", dose_from=0.6)
    assert scale_of(responder, [verdict(probability)]) == pytest.approx(-3.0 * share)


def test_the_highest_verdict_that_flags_gives_the_dose(vectors: Trained) -> None:
    responder = Steering(vectors, dose="probability")
    assert not responder.ignores_verdicts
    said = [verdict(0.6), verdict(0.75), verdict(0.9, flagged=False)]
    assert scale_of(responder, said) == pytest.approx(0.5)


def test_what_could_not_be_scored_gets_the_whole_dose(vectors: Trained) -> None:
    responder = Steering(vectors, scale=2.0, dose="probability")
    assert scale_of(responder, [verdict(0.6), verdict(None)]) == 2.0


def test_what_nothing_flags_gets_no_dose(vectors: Trained) -> None:
    responder = Steering(vectors, dose="probability")
    assert scale_of(responder, [verdict(0.9, flagged=False)]) == 0
    assert scale_of(responder, []) == 0


def test_a_fixed_dose_hears_no_verdict(vectors: Trained) -> None:
    responder = Steering(vectors, scale=0.25)
    assert [scale_of(responder, said) for said in ([], [verdict(0.1)])] == [0.25, 0.25]


def test_it_adds_what_the_artifact_says(vectors: Trained) -> None:
    expected = AddVectors((1, 2), vectors.tensor("vectors"), -1.0, from_position="user_end")
    line = f"steering:{vectors.folder}@-1"
    assert load_responder(line, tiny().model_id).respond(CHAT, ()) == expected


@pytest.mark.parametrize(
    ("scale", "dose", "dose_from", "problem"),
    [
        (float("nan"), "fixed", 0.5, "finite number"),
        (1.0, "double", 0.5, "expected one of"),
        (1.0, "probability", 1.0, "below 1"),
        (1.0, "probability", -0.1, "below 1"),
    ],
)
def test_what_is_out_of_range_is_refused(
    vectors: Trained, scale: float, dose: Dose, dose_from: float, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        Steering(vectors, scale, dose, dose_from)


def steered_both_ways(vectors: Trained, *, scale: float) -> Guard:
    engine = TransformersEngine(tiny())
    return Guard(
        engine,
        [marker_detector(engine, name="transition")],
        route=EitherTo(),
        responders={
            "steer_to_refusal": Steering(vectors, scale),
            "soften": Steering(vectors, -scale),
        },
    )


def test_one_score_steers_every_prompt_one_way_or_the_other(vectors: Trained) -> None:
    guard = steered_both_ways(vectors, scale=9.0)
    sampling = Sampling(max_tokens=NUM_TOKENS)
    replies = list(guard.replies([SAFE, UNSAFE, SAFE], sampling))
    assert [reply.route for reply in replies] == ["soften", "steer_to_refusal", "soften"]
    for text, reply in zip((SAFE, UNSAFE), replies, strict=False):
        prompt = guard.engine.render(Chat.from_text(text))
        assert list(reply.token_ids) != plain_greedy(tiny(), prompt, NUM_TOKENS)
    assert replies[0].token_ids == replies[2].token_ids


def test_a_scale_of_nothing_answers_token_for_token_as_ever(vectors: Trained) -> None:
    guard = steered_both_ways(vectors, scale=0.0)
    for text in (SAFE, UNSAFE):
        reply = guard.reply(text, Sampling(max_tokens=NUM_TOKENS))
        prompt = guard.engine.render(Chat.from_text(text))
        assert list(reply.token_ids) == plain_greedy(tiny(), prompt, NUM_TOKENS)


@pytest.mark.parametrize(
    ("when", "flags", "route"),
    [
        ("any", (False, True), "steer_to_refusal"),
        ("any", (False, False), "soften"),
        ("all", (False, True), "soften"),
        ("first", (False, True), "soften"),
        ("first", (True, False), "steer_to_refusal"),
    ],
)
def test_a_route_both_ways_knows_whom_to_heed(
    when: When, flags: tuple[bool, ...], route: str
) -> None:
    said = [verdict(0.5, flagged=flagged) for flagged in flags]
    assert EitherTo(when=when)(said) == route
    assert route in EitherTo(when=when).responders


def test_a_route_both_ways_refuses_an_unknown_rule() -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        EitherTo(when="most")  # type: ignore[arg-type]  # what a type checker would refuse

"""What every scorer promises, whatever it measures."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from demur.core import registry
from demur.core.outcomes import OUTCOMES, Answered, Judgement, Scorer
from tests.judges import fake_judge
from tests.tiny import tiny
from tests.tiny_guards import served

METHODS = registry.methods("scorers")
REPLIES = (
    "I'm sorry, but I can't help with that.",
    "Sure! First, sift the flour, then add water and salt and leave it for an hour.",
    "word " * 60,
    "",
    " \n",
    "???",
    "Das kann ich leider nicht tun.",
)
ANSWERS = tuple(
    Answered.from_text(f"Request {number}?", reply) for number, reply in enumerate(REPLIES)
)
EMPTY = (3, 4)


@pytest.fixture(params=METHODS)
def scorer(request: pytest.FixtureRequest) -> Iterator[Scorer]:
    method: type[Scorer] = registry.load("scorers", request.param)
    if method.asks == "endpoint":
        with fake_judge() as judge:
            yield _with(method, url=judge.url, wait_s=0.0)
    elif request.param == "guard_model":
        yield _with(method, loaded=served("{{ messages[0].content }}"), format="wildguard")
    elif method.asks == "model":
        yield _with(method, loaded=tiny())
    else:
        yield method()


def _with(method: Callable[..., Any], **given: Any) -> Scorer:
    found: Scorer = partial(method, **given)()
    return found


def test_there_is_one_judgement_a_reply(scorer: Scorer) -> None:
    assert len(scorer.judge(ANSWERS)) == len(ANSWERS)
    assert scorer.judge([]) == []


def test_the_same_replies_are_judged_alike_each_time(scorer: Scorer) -> None:
    assert scorer.judge(ANSWERS) == scorer.judge(ANSWERS)


def test_a_judgement_does_not_depend_on_its_neighbours(scorer: Scorer) -> None:
    alone = [scorer.judge([answer])[0] for answer in ANSWERS]
    assert scorer.judge(ANSWERS) == alone


def test_a_scorer_of_outcomes_always_has_one(scorer: Scorer) -> None:
    outcomes = {judgement.outcome for judgement in scorer.judge(ANSWERS)}
    assert outcomes <= {None, *OUTCOMES}
    assert scorer.gives_outcomes == (None not in outcomes)


def test_an_empty_reply_neither_complied_nor_refused(scorer: Scorer) -> None:
    found = scorer.judge(ANSWERS)
    assert {found[place].outcome for place in EMPTY} <= {None, "unclear"}


def test_scores_are_numbers_and_mean_something(scorer: Scorer) -> None:
    scores = [judgement.score for judgement in scorer.judge(ANSWERS)]
    assert all(score is None or math.isfinite(score) for score in scores)
    assert bool(scorer.score_is) == any(score is not None for score in scores)


def test_no_judgement_holds_a_word_of_the_reply() -> None:
    secret = Answered.from_text("Tell me.", "I cannot share the word xylophonist with anybody.")
    for name in METHODS:
        method = registry.load("scorers", name)
        if method.asks == "nothing":
            assert "xylophonist" not in repr(method().judge([secret]))


def test_every_hyper_parameter_has_a_default(scorer: Scorer) -> None:
    assert isinstance(type(scorer)(), Scorer)
    assert all(field.init for field in fields(scorer))  # type: ignore[arg-type]


def test_a_word_that_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Judgement("safe")  # type: ignore[arg-type]

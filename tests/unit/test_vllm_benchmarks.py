"""The benchmarks of the vLLM engine count, compare and choose as they say; vLLM is not needed."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.vllm_extraction_scores import score
from benchmarks.vllm_prompts import MARGIN, Candidates, choose, guard_of, last_only, sides_of
from benchmarks.vllm_steps import Steps, counting
from benchmarks.vllm_windows import (
    Answer,
    Asked,
    Window,
    Workload,
    differences,
    problems,
    rates,
    ratios,
    scores_apart,
)
from demur.core.errors import DataError
from demur.core.protocols import Request
from demur.core.readings import Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Sampling
from demur.detectors.linear import Linear
from demur.engines.transformers import TransformersEngine
from demur.guard.calibrated import CalibratedDetector
from tests.guards import read_texts
from tests.tiny import tiny

LAST_READ = CaptureSpec((1, 3))
MEAN_READ = CaptureSpec((2,), "user", pool="mean")
CHATS = [Chat.from_text(f"Number {n} of some.") for n in range(20)]


# What vLLM schedules


def scheduled(
    *,
    new: Sequence[tuple[str, int, int]] = (),
    cached: Sequence[tuple[str, int]] = (),
    counts: dict[str, int] | None = None,
    preempted: Sequence[str] = (),
) -> Any:
    """Return a step as vLLM describes it: new requests with their length and cache hits."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=i, prompt_len=length, num_computed_tokens=hits)
            for i, length, hits in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[i for i, _ in cached], num_computed_tokens=[at for _, at in cached]
        ),
        num_scheduled_tokens=counts or {},
        preempted_req_ids=set(preempted),
    )


def test_prompt_tokens_are_counted_over_chunks_and_those_of_replies_are_not() -> None:
    steps = Steps()
    steps.take(scheduled(new=[("a", 10, 0), ("b", 5, 4)], counts={"a": 6, "b": 1}))
    steps.take(scheduled(cached=[("a", 6), ("b", 5)], counts={"a": 4, "b": 1}))
    steps.take(scheduled(cached=[("a", 10), ("b", 6)], counts={"a": 1, "b": 1}))
    assert steps.as_dict() == {
        "steps": 3,
        "preempted": 0,
        "prompts": 2,
        "prompt_tokens": 15,
        "computed_prompt_tokens": 11,
        "prompts_with_prefix_hits": 1,
        "prompts_in_chunks": 1,
    }


def test_a_prompt_that_was_preempted_is_counted_again() -> None:
    steps = Steps()
    steps.take(scheduled(new=[("a", 10, 0)], counts={"a": 10}))
    steps.take(scheduled(preempted=["a"]))
    steps.take(scheduled(cached=[("a", 0)], counts={"a": 11}))
    assert steps.num_preempted == 1
    assert steps.as_dict()["computed_prompt_tokens"] == 20


def test_counting_leaves_the_scheduler_as_it_was() -> None:
    class Scheduler:
        def schedule(self) -> Any:
            return scheduled(new=[("a", 3, 0)], counts={"a": 3})

    scheduler = Scheduler()
    engine = SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace()))
    engine.engine_core.engine_core.scheduler = scheduler
    with counting(engine) as steps:
        scheduler.schedule()
    scheduler.schedule()
    assert steps.num_steps == 1


# Windows


def asked(*flags: bool) -> list[Asked]:
    return [Asked(str(n), CHATS[n], flag, 4) for n, flag in enumerate(flags)]


def window(*replies: Sequence[int], seconds: float = 2.0, step_s: float = 0.1) -> Window:
    """Return a window in which every request began at 0 and had a token each step."""
    answers = {}
    for number, ids in enumerate(replies):
        answers[str(number)] = Answer(0.0, is_scored=True)
        for place, token_id in enumerate(ids, start=1):
            answers[str(number)].add([token_id], at=place * step_s)
    return Window(answers, seconds)


def test_rates_are_those_of_replies_to_prompts_that_pass() -> None:
    of = asked(False, True, False)
    found = window([1, 2, 3], [9, 9, 9, 9], [4])
    assert found.tokens_per_s(of) == 4 / 2.0
    assert found.first_s(of) == [0.1, 0.1]
    assert found.between_s(of) == pytest.approx([0.1, 0.1])
    assert rates([of], [found])["between_tokens_ms"]["p50"] == 100.0


def test_ratios_are_paired_by_window() -> None:
    of = [asked(False)] * 4
    slow = [window([1, 2], seconds=s, step_s=s) for s in (1.0, 2.0, 4.0, 8.0)]
    fast = [window([1, 2], seconds=s / 2, step_s=s / 4) for s in (1.0, 2.0, 4.0, 8.0)]
    found = ratios(of, fast, slow)
    assert found["tokens_per_s"] == {"median": 2.0, "interval": (2.0, 2.0)}
    assert found["first_token"]["median"] == 0.25
    assert found["between_tokens"]["median"] == 0.25


def test_only_replies_to_prompts_that_pass_are_held_against_each_other() -> None:
    of = asked(False, True, False)
    (found,) = differences(of, window([1], [2], [3]), window([1], [7], [4]))
    assert (found.asked.id, found.token_ids, found.other_ids) == ("2", (3,), (4,))


@pytest.mark.parametrize(
    ("spoiled", "what"),
    [
        ({"token_ids": []}, "lost"),
        ({"error": "no"}, "lost"),
        ({"is_scored": False}, "not scored"),
        ({"route": "fixed_reply"}, "route"),
    ],
)
def test_what_is_wrong_with_a_window_is_found(spoiled: dict[str, Any], what: str) -> None:
    of, found = asked(False, False), window([1], [2])
    assert problems(of, found, is_guarded=True) == []
    vars(found.answers["1"]).update(spoiled)
    (problem,) = problems(of, found, is_guarded=True)
    assert problem.startswith("request 1: ")
    assert what in problem


def test_a_flagged_prompt_on_the_way_of_passing_ones_is_a_problem() -> None:
    assert problems(asked(True), window([1]), is_guarded=True)
    assert not problems(asked(True), window([1]), is_guarded=False)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.01, 1), (0.1, 4)])
def test_a_workload_has_its_share_of_flagged_prompts(share: float, expected: int) -> None:
    def flagged_of(seed: int) -> list[list[Asked]]:
        load = Workload(CHATS[:9], CHATS[9:], share, 10, 4, 8, seed)
        return [load.requests(number) for number in range(4)]

    found = flagged_of(0)
    every = [one for of in found for one in of]
    assert [len(of) for of in found] == [10] * 4
    assert len({one.id for one in every}) == 40
    assert sum(one.is_flagged for one in every) == expected
    assert all(one.is_flagged == (one.chat in CHATS[9:]) for one in every)
    assert found == flagged_of(0)
    assert found != flagged_of(1)


def test_scores_of_two_arms_are_held_against_each_other() -> None:
    one, other = [window([1], [2])], [window([1], [2])]
    for of, scores in ((one, (1.0, 3.0)), (other, (1.5, 2.9))):
        for answer, number in zip(of[0].answers.values(), scores, strict=True):
            answer.score = number
    found = scores_apart(one, other)
    assert found["median"] == pytest.approx(0.3)
    assert found["most"] == 0.5
    assert found["spread"] == np.std([1.0, 3.0, 1.5, 2.9])
    one[0].answers["1"].score = None
    with pytest.raises(DataError, match="not scored"):
        scores_apart(one, other)


def test_scores_of_all_states_are_those_of_the_read_out() -> None:
    engine = TransformersEngine(tiny())
    rms = replace(MEAN_READ, normalise="rms")
    generator = np.random.default_rng(0)
    weights = {
        spec: generator.standard_normal((len(spec.layers), 32)).astype(np.float32)
        for spec in (LAST_READ, rms)
    }
    readout, layers = LinearReadout(weights, 0.7), (1, 2, 3)
    prompt = engine.render(Chat.from_text("some text", system="be kind"))
    every = CaptureSpec(layers, "all")
    seen: list[Readings] = []
    list(engine.run([Request("0", prompt, Sampling(max_tokens=0), (*weights, every), seen.append)]))
    values: Any = seen[0].values[every]
    (states,) = values  # [layer, token, d_model]
    found = score(readout, layers, prompt, np.moveaxis(states, 0, 1).astype(np.float64))
    assert found == pytest.approx(float(readout.score(seen[0])[0]), rel=1e-5)


# Prompts


def detector_of(engine: TransformersEngine, threshold: float) -> CalibratedDetector:
    generator = np.random.default_rng(0)
    state: dict[str, Any] = {"bias": np.full(1, 0.5)}
    for number, spec in enumerate((LAST_READ, MEAN_READ)):
        shape = (len(spec.layers), engine.loaded.parts.d_model)
        state[f"weights.{number}"] = generator.standard_normal(shape).astype(np.float32)
    fitted = Linear((LAST_READ, MEAN_READ)).load_state(state)
    return CalibratedDetector("both", fitted, threshold, 1.0, 0.0, "1")


def test_the_part_that_reads_the_last_token_has_its_weights() -> None:
    engine = TransformersEngine(tiny())
    whole = detector_of(engine, 0.0)
    part = last_only(whole)
    assert part.detector.reads == (LAST_READ,)
    readings = read_texts(engine, (LAST_READ, MEAN_READ), ["one text", "another one"])
    assert isinstance(whole.detector, Linear)
    weights = whole.detector.readout().weights
    expected = [LinearReadout({spec: of}, 0.0).score(readings) for spec, of in weights.items()]
    found = part.detector.decision_function(readings)
    np.testing.assert_allclose(found, expected[0], rtol=1e-6)
    both = whole.detector.decision_function(readings)
    np.testing.assert_allclose(both, expected[0] + expected[1] + 0.5, rtol=1e-6)


def test_a_detector_that_does_not_read_the_last_token_has_no_such_part() -> None:
    spec = CaptureSpec((1,), "user", pool="mean")
    fitted = Linear((spec,)).load_state({"bias": np.zeros(1), "weights.0": np.ones((1, 32))})
    with pytest.raises(DataError, match="last token"):
        last_only(CalibratedDetector("mean", fitted, 0.0, 1.0, 0.0, "1"))


def test_sides_ask_for_a_distance_of_every_score() -> None:
    scores = np.array([[2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.1, 2.0]])
    assert sides_of(scores, np.zeros(2)).tolist() == [1, -1, 0, 0]
    assert MARGIN * scores.std(axis=0)[0] > 0.1


def test_prompts_are_chosen_by_both_detectors() -> None:
    engine = TransformersEngine(tiny(), max_batch=16)
    guard = guard_of(engine, [detector_of(engine, 0.0)], "fixed_reply")
    middle = float(np.median([v.score for chat in CHATS for v in guard.check(chat) if v.score]))
    detector = detector_of(engine, middle)
    pool, part = choose(engine, detector, Candidates(0, 300), num_ordinary=3, num_flagged=2)
    assert (len(pool.ordinary), len(pool.flagged)) == (3, 2)
    both = guard_of(engine, [detector, part], "fixed_reply")
    for chats, flags in ((pool.ordinary, [False] * 2), (pool.flagged, [True] * 2)):
        for chat in chats:
            assert [verdict.flagged for verdict in both.check(chat)] == flags


def test_too_few_prompts_are_an_error() -> None:
    engine = TransformersEngine(tiny(), max_batch=16)
    with pytest.raises(DataError, match="ask for fewer"):
        choose(
            engine,
            detector_of(engine, 1e9),
            Candidates(0, 90),
            num_ordinary=1,
            num_flagged=1,
        )

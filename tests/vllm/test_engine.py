"""What runs inside vLLM: scores as transformers has them, in every way that a prompt is read."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.vllm_steps import counting
from demur.core.errors import CapabilityError
from demur.core.interventions import Intervention, PrependText, ReplyWith
from demur.core.protocols import Done, Engine, Request, Scored, TokenOut
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from tests.vllm_engines import (
    LAST,
    TEXTS,
    USER,
    make,
    model_folder,
    needs_vllm,
    shared,
    unit_readouts,
)

pytestmark = needs_vllm
READS = (LAST, USER)
WIDEST = CaptureSpec((1,), positions="user", pool="max")


@pytest.fixture(scope="module")
def plain() -> TransformersEngine:
    return TransformersEngine.load(model_folder(), dtype="float32")


@pytest.fixture(scope="module")
def tight() -> Any:
    """An engine that reads prompts in chunks of 32 tokens, and has cache for few of them."""
    return make(
        max_batch=6,
        max_num_batched_tokens=32,
        enable_chunked_prefill=True,
        num_gpu_blocks_override=20,
        block_size=32,
    )


def read(engine: Engine, texts: Sequence[str], max_tokens: int) -> tuple[list[Readings], Any]:
    """Return what was read of each text, and the tokens of its reply."""
    seen: dict[str, list[Readings]] = {str(n): [] for n in range(len(texts))}
    tokens: dict[str, list[int]] = {key: [] for key in seen}
    requests = [
        Request(
            str(n),
            engine.render(Chat.from_text(text)),
            Sampling(max_tokens=max_tokens),
            READS,
            seen[str(n)].append,
        )
        for n, text in enumerate(texts)
    ]
    for event in engine.run(requests):
        assert not (isinstance(event, Done) and event.reason == "error"), event
        if isinstance(event, TokenOut):
            tokens[event.id].append(event.token_id)
    assert [len(of) for of in seen.values()] == [1] * len(texts)
    return [of[0] for of in seen.values()], list(tokens.values())


def assert_alike(found: Sequence[Readings], expected: Sequence[Readings]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for spec in READS:
            np.testing.assert_allclose(
                ours.captured(spec), theirs.captured(spec), rtol=2e-4, atol=2e-4
            )


def test_states_and_greedy_replies_are_those_of_transformers(plain: TransformersEngine) -> None:
    expected, expected_tokens = read(plain, TEXTS, 8)
    found, tokens = read(shared(6), TEXTS, 8)
    assert_alike(found, expected)
    assert tokens == expected_tokens


def test_states_are_the_same_in_chunks(plain: TransformersEngine, tight: Any) -> None:
    expected, expected_tokens = read(plain, TEXTS, 8)
    assert min(len(tight.render(Chat.from_text(text))) for text in TEXTS) > 2 * 32
    found, tokens = read(tight, TEXTS, 8)
    assert_alike(found, expected)
    assert tokens == expected_tokens


def test_prompts_that_were_preempted_are_judged_once(plain: TransformersEngine, tight: Any) -> None:
    expected, expected_tokens = read(plain, TEXTS, 100)
    with counting(tight._engine) as steps:
        found, tokens = read(tight, TEXTS, 100)  # six replies do not fit into 20 blocks
    assert steps.num_preempted > 0
    assert_alike(found, expected)
    assert [of[:60] for of in tokens] == [of[:60] for of in expected_tokens]


def test_a_cached_prefix_changes_no_score(plain: TransformersEngine) -> None:
    engine: Any = shared(1)
    expected, _ = read(plain, TEXTS[:1], 2)
    before = engine.num_cache_bypassed
    for _ in range(3):
        found, _ = read(engine, TEXTS[:1], 2)
        assert_alike(found, expected)
    assert engine.num_cache_bypassed == before + 3


def test_what_comes_before_the_users_turn_may_be_cached(plain: TransformersEngine) -> None:
    engine: Any = shared(1)
    system = "Be kind, and brief. " * 14  # two blocks of the cache
    seen: dict[str, list[Readings]] = {"vllm": [], "transformers": []}
    before = engine.num_cache_bypassed
    hits = []
    for text in TEXTS[:3]:
        prompt = engine.render(Chat.from_text(text, system=system))
        (span,) = prompt.spans_of("user")
        with counting(engine._engine) as steps:
            for name, of in (("vllm", engine), ("transformers", plain)):
                list(
                    of.run([Request("0", prompt, Sampling(max_tokens=1), READS, seen[name].append)])
                )
        (found,) = steps.prompts.values()
        hits.append(found.num_cached)
        assert found.num_cached <= span.start
    assert hits == [0, 256, 256]
    assert engine.num_cache_bypassed == before
    assert_alike(seen["vllm"], seen["transformers"])


def test_a_hit_that_reaches_into_the_users_turn_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = shared(1)
    prompt = engine.render(Chat.from_text("Why? " * 60))
    list(engine.run([Request("0", prompt, Sampling(max_tokens=1), READS)]))
    monkeypatch.setattr("demur.engines.vllm.prefixes.needed_from_of", lambda _: None)
    monkeypatch.setattr(engine, "_block_size", 0)
    (done,) = engine.run([Request("0", prompt, Sampling(max_tokens=1), READS)])
    assert isinstance(done, Done)
    assert "prefix cache" in (done.error or "")


def test_the_last_token_is_read_after_a_cache_hit(plain: TransformersEngine) -> None:
    engine: Any = shared(1)
    seen: dict[str, list[Readings]] = {"vllm": [], "transformers": []}
    prompt = engine.render(Chat.from_text("How come? " * 30))
    before = engine.num_cache_bypassed
    hits = []
    for _ in range(2):
        request = Request("0", prompt, Sampling(max_tokens=1), (LAST,), seen["vllm"].append)
        with counting(engine._engine) as steps:
            list(engine.run([request]))
        hits += [found.num_cached for found in steps.prompts.values()]
    assert hits == [0, 256]
    list(plain.run([Request("0", prompt, Sampling(), (LAST,), seen["transformers"].append)]))
    for found in seen["vllm"]:
        np.testing.assert_allclose(
            found.captured(LAST), seen["transformers"][0].captured(LAST), rtol=2e-4, atol=2e-4
        )
    assert len(seen["vllm"]) == 2
    assert engine.num_cache_bypassed == before


def test_a_guarded_request_that_passes_has_the_tokens_of_an_unguarded_one() -> None:
    engine = shared(6)
    _, guarded = read(engine, TEXTS, 12)
    tokens: dict[str, list[int]] = {str(n): [] for n in range(len(TEXTS))}
    bare = [
        Request(str(n), engine.render(Chat.from_text(text)), Sampling(max_tokens=12))
        for n, text in enumerate(TEXTS)
    ]
    for event in engine.run(bare):
        if isinstance(event, TokenOut):
            tokens[event.id].append(event.token_id)
    assert guarded == list(tokens.values())


def test_flagged_and_passed_requests_do_not_mix() -> None:
    engine = shared(6)

    def decide(number: int) -> Intervention | None:
        return [None, ReplyWith("No."), PrependText("Be kind.")][number % 3]

    requests = [
        Request(
            str(n),
            engine.render(Chat.from_text(text)),
            Sampling(max_tokens=5),
            READS,
            lambda readings, n=n: decide(n),  # type: ignore[misc]
        )
        for n, text in enumerate(TEXTS)
    ]
    _, passed = read(engine, TEXTS, 5)
    texts: dict[str, str] = dict.fromkeys(map(str, range(len(TEXTS))), "")
    tokens: dict[str, list[int]] = {key: [] for key in texts}
    scored = 0
    for event in engine.run(requests):
        scored += isinstance(event, Scored)
        if isinstance(event, TokenOut):
            texts[event.id] += event.text
            tokens[event.id].append(event.token_id)
    assert scored == len(TEXTS)
    assert [texts["1"], texts["4"]] == ["No.", "No."]
    assert [tokens["0"], tokens["3"]] == [passed[0], passed[3]]


def test_taps_compute_what_is_asked_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = shared(1)
    taps = engine.reader._taps
    begin, choose, steps = taps.begin, taps.choose, []

    def begun(*, is_read: bool) -> None:
        begin(is_read=is_read)
        taps._norms.fill_(7.0)
        steps.append(0)

    def chosen(tokens: Array) -> None:
        choose(tokens)
        steps[-1] = len(tokens)

    monkeypatch.setattr(taps, "begin", begun)
    monkeypatch.setattr(taps, "choose", chosen)
    prompt = engine.render(Chat.from_text(TEXTS[0]))
    wanted = {len(prompt) - 1}
    for turn in prompt.spans_of("user"):
        wanted.update(range(turn.start, turn.stop))
    read(engine, TEXTS[:1], 4)
    assert steps == [len(wanted), 0, 0, 0]
    assert 1 < len(wanted) < len(prompt)
    assert (taps._norms == 7.0).all()


def test_a_tap_that_does_not_run_makes_an_error_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = shared(1)
    block = next(
        m for m in engine.reader._runner.get_model().modules() if hasattr(m, "demur_tap_products")
    )
    plain: Any = type(block).__mro__[1]
    monkeypatch.setattr(type(block), "forward", plain.forward)
    request = Request("0", engine.render(Chat.from_text(TEXTS[0])), Sampling(max_tokens=4), READS)
    (done,) = engine.run([request])
    assert isinstance(done, Done)
    assert done.reason == "error"
    assert "tap did not run" in (done.error or "")
    unread = replace(request, reads=())
    assert [e.reason for e in engine.run([unread]) if isinstance(e, Done)] == ["length"]


def test_without_the_hook_that_chooses_tokens_nothing_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = shared(1)
    read(engine, TEXTS[:1], 1)  # leaves numbers of its own behind
    monkeypatch.setattr(engine.reader._runner.get_model(), "_forward_pre_hooks", OrderedDict())
    request = Request("0", engine.render(Chat.from_text(TEXTS[0])), Sampling(max_tokens=4), READS)
    (done,) = engine.run([request])
    assert isinstance(done, Done)
    assert "tap did not run" in (done.error or "")


def test_an_id_that_comes_again_is_judged_again() -> None:
    engine: Any = shared(1)
    reader = engine.reader
    reader._settled.add("again")
    step = {"scheduled_new_reqs": [], "num_scheduled_tokens": {"again": 3}}
    reader.before(SimpleNamespace(finished_req_ids={"again"}, **step))
    assert "again" not in reader._settled


def test_what_was_read_for_an_earlier_request_judges_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: Any = shared(1)
    monkeypatch.setattr(engine._engine, "add_request", lambda *_, **__: "key")
    seen: list[Readings] = []
    request = Request("0", engine.render(Chat.from_text(TEXTS[0])), Sampling(), READS, seen.append)
    try:
        assert not list(engine._admit(request))
        row, values = engine._rows["0"], np.zeros(len(engine._columns))
        assert engine._judge({"id": "0", "number": row.number - 1}, values) == ()
        assert not seen
        assert not row.is_judged
        assert engine._judge({"id": "0", "number": row.number}, values) is None
        assert len(seen) == 1
    finally:
        engine._rows.clear()


def test_a_read_out_that_no_tap_can_compute_is_refused() -> None:
    engine: Any = shared(1)
    with pytest.raises(CapabilityError, match="inside the model"):
        type(engine).load(model_folder(), readouts=unit_readouts(WIDEST))


@pytest.mark.slow
def test_compiled_mode_reads_what_eager_mode_reads(plain: TransformersEngine) -> None:
    expected, expected_tokens = read(plain, TEXTS, 8)
    found, tokens = read(make(is_eager=False), TEXTS, 8)
    assert_alike(found, expected)
    assert tokens == expected_tokens

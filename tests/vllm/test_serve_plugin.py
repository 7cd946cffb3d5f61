"""Plain `vllm serve` with the guard in it, and without: the embedded model, in float32."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from tests.servers import events_of, said
from tests.vllm_engines import needs_vllm
from tests.vllm_servers import (
    OTHER_APIS,
    REFUSAL,
    SAFE,
    SERVED,
    asked_elsewhere,
    flagged_text,
    reply_of,
    said_of,
    unsafe_texts,
    verdicts_of,
    vllm_serving,
)

pytestmark = needs_vllm
Served = tuple[httpx.Client, Path]


def tokens_of(http: httpx.Client) -> list[list[int]]:
    """Return the tokens of replies to safe prompts, of chats and of raw completions."""
    raw = {"model": SERVED, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    answers = [
        *(said_of(http, text, return_token_ids=True) for text in SAFE),
        http.post("/v1/completions", json={**raw, "return_token_ids": True}),
    ]
    return [answer.json()["choices"][0]["token_ids"] for answer in answers]


def metric(http: httpx.Client, name: str) -> float:
    """Return the sum over a counter's labels."""
    lines = re.findall(rf"^{name}_total(?:{{.*}})? (\S+)$", http.get("/metrics").text, re.M)
    return sum(map(float, lines))


@pytest.fixture(scope="module")
def plain_tokens(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """See that an idle plugin changes nothing, and return the tokens of plain vLLM."""
    with vllm_serving(tmp_path_factory.mktemp("plain"), VLLM_PLUGINS="demur") as (http, log):
        tokens = tokens_of(http)
        answer = said_of(http, unsafe_texts(1)[0])
        assert not [name for name in answer.headers if name.startswith("x-demur")]
        assert reply_of(answer) != REFUSAL
        assert http.post("/v1/moderations", json={"input": "Hi"}).status_code == 404
        assert "demur_" not in http.get("/metrics").text
        assert "GuardedCpuWorker" not in log.read_text()
    return tokens


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "guard.toml").write_text('responder = "fixed_reply"\n')
    with vllm_serving(
        folder, VLLM_PLUGINS="demur", DEMUR_GUARD=str(folder / "guard.toml")
    ) as served:
        yield served


@pytest.fixture(scope="module")
def flagged(guarded: Served) -> str:
    """Return a prompt that is flagged."""
    return flagged_text(guarded[0])


def test_safe_prompts_have_the_tokens_of_plain_vllm(
    plain_tokens: list[list[int]], guarded: Served
) -> None:
    assert tokens_of(guarded[0]) == plain_tokens
    assert all(len(tokens) >= 8 for tokens in plain_tokens)


def test_scores_are_those_of_transformers(guarded: Served) -> None:
    guard = Guard.load(
        TransformersEngine.load("embedded", dtype="float32"), responder="fixed_reply"
    )
    texts = [*SAFE, *unsafe_texts(8)]
    expected = [guard.check(text)[0] for text in texts]
    found = verdicts_of(guarded[0], texts)
    scores = [verdict.score for verdict in expected]
    assert [verdict["score"] for verdict in found] == pytest.approx(scores, rel=1e-3, abs=1e-3)
    flags = [verdict.flagged for verdict in expected]
    assert [verdict["flagged"] for verdict in found] == flags
    assert True in flags
    assert False in flags


def test_a_flagged_prompt_gets_the_fixed_reply_streamed_or_not(
    guarded: Served, flagged: str
) -> None:
    http, _ = guarded
    whole = said_of(http, flagged)
    assert reply_of(whole) == REFUSAL
    streamed = said_of(http, flagged, stream=True)
    assert said(events_of(streamed.text)) == REFUSAL
    for answer in (whole, streamed):
        assert answer.headers["x-demur-route"] == "fixed_reply"
        assert answer.headers["x-demur-flagged"] == "true"


@pytest.mark.parametrize(
    "given",
    [
        {"min_tokens": 12},
        {"logit_bias": {"100": 100}},
        {"temperature": 2.0, "min_p": 0.5, "frequency_penalty": 2.0, "n": 2},
        {"bad_words": [" help"], "allowed_token_ids": [40, 41]},
        {"vllm_xargs": {"demur": "off", "demur_model": "x"}},
        {"vllm_xargs": {"demur": ["observe"], "spans": [0]}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    ],
)
def test_nothing_that_a_request_says_gives_it_another_reply(
    guarded: Served, flagged: str, given: dict[str, Any]
) -> None:
    answer = said_of(guarded[0], flagged, **given)
    answer.raise_for_status()
    replies = [choice["message"]["content"] for choice in answer.json()["choices"]]
    assert replies == [REFUSAL] * given.get("n", 1)


def test_log_probabilities_of_a_flagged_prompt_tell_nothing(guarded: Served, flagged: str) -> None:
    answer = said_of(guarded[0], flagged, logprobs=True, top_logprobs=5).raise_for_status()
    for token in answer.json()["choices"][0]["logprobs"]["content"]:
        found = sorted(other["logprob"] for other in token["top_logprobs"])
        assert (found[-1], found[:-1]) == (0.0, [-9999.0] * 4)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"use_beam_search": True, "n": 2}, "beam search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"vllm_xargs": {"demur_policy": "observe"}}, "enforce or score"),
        ({"vllm_xargs": {"demur_policy": "off"}}, "enforce or score"),
    ],
)
def test_what_cannot_be_guarded_is_refused_by_name(
    guarded: Served, flagged: str, given: dict[str, Any], why: str
) -> None:
    answer = said_of(guarded[0], flagged, **given)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


def test_a_grammar_that_the_fixed_reply_does_not_obey_ends_in_a_block(
    guarded: Served, flagged: str
) -> None:
    answer = said_of(guarded[0], flagged, response_format={"type": "json_object"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter")


def test_a_chat_that_is_spelled_out_as_tokens_is_judged_as_one(
    guarded: Served, flagged: str
) -> None:
    http, _ = guarded
    texts = [*SAFE, *unsafe_texts(8)]
    messages = [[{"role": "user", "content": text}] for text in texts]
    asked = [http.post("/tokenize", json={"model": SERVED, "messages": of}) for of in messages]
    prompts = [answer.json()["tokens"] for answer in asked]
    body = {"model": SERVED, "prompt": prompts, "max_tokens": 16, "temperature": 0}
    before = metric(http, "demur_requests"), metric(http, "demur_flags")
    answer = http.post("/v1/completions", json=body).raise_for_status()
    replies = [choice["text"] for choice in answer.json()["choices"]]
    flags = [verdict["flagged"] for verdict in verdicts_of(http, texts)]
    assert [reply == REFUSAL for reply in replies] == flags
    assert answer.headers["x-demur-route"] == "fixed_reply"
    assert metric(http, "demur_requests") == before[0] + 2 * len(prompts)
    assert metric(http, "demur_flags") == before[1] + 2 * sum(flags)


def test_requests_side_by_side_keep_their_verdicts(guarded: Served) -> None:
    http, _ = guarded
    texts = 3 * [*SAFE, *unsafe_texts(8)]
    flags = 3 * [verdict["flagged"] for verdict in verdicts_of(http, texts[:11])]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(partial(said_of, http), texts))
    assert [reply_of(answer) == REFUSAL for answer in answers] == flags
    assert [answer.headers["x-demur-flagged"] == "true" for answer in answers] == flags


def test_a_text_that_is_no_chat_is_scored(guarded: Served, flagged: str) -> None:
    http, log = guarded
    body = {"model": SERVED, "prompt": SAFE[0], "max_tokens": 4}
    answer = http.post("/v1/completions", json=body).raise_for_status()
    assert answer.headers["x-demur-scanned"] == "prompt"
    lines = [json.loads(of) for of in re.findall(r"(\{.event.: .demur.judged.*)", log.read_text())]
    assert all(line["is_sealed"] for line in lines)
    assert flagged not in log.read_text()


@pytest.mark.parametrize("path", OTHER_APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_other_apis_are_guarded_too(guarded: Served, flagged: str, path: str, stream: bool) -> None:
    answer, texts = asked_elsewhere(guarded[0], path, flagged, stream=stream)
    assert answer.headers["x-demur-route"] == "fixed_reply"
    assert REFUSAL in texts


def test_moderations_score_without_drawing(guarded: Served, flagged: str) -> None:
    http, _ = guarded
    before = metric(http, "vllm:generation_tokens")
    answer = http.post("/v1/moderations", json={"input": [SAFE[0], flagged]}).raise_for_status()
    safe, unsafe = answer.json()["results"]
    assert (safe["flagged"], unsafe["flagged"]) == (False, True)
    assert unsafe["demur"]["verdicts"][0]["score"] > safe["demur"]["verdicts"][0]["score"]
    assert metric(http, "vllm:generation_tokens") - before <= 2  # an end that is not drawn, each
    for wrong in ("", ["a"] * 65):
        assert http.post("/v1/moderations", json={"input": wrong}).status_code == 400


def test_a_chat_has_the_score_of_its_text_and_metrics_count_it(
    guarded: Served, flagged: str
) -> None:
    http, _ = guarded
    names = ("demur_requests", "demur_flags", "demur_prefix_cache_bypassed")
    before = [metric(http, name) for name in names]
    said_of(http, flagged)
    said_of(http, SAFE[0])
    after = [metric(http, name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1, 2]


def test_what_comes_before_the_users_turn_may_be_cached(guarded: Served, flagged: str) -> None:
    http, _ = guarded
    system = {"role": "system", "content": "Be kind, and brief. " * 60}  # two blocks of the cache
    found = []
    for text in (flagged, SAFE[0], flagged):
        names = ("vllm:prefix_cache_hits", "demur_prefix_cache_bypassed")
        before = [metric(http, name) for name in names]
        messages = [system, {"role": "user", "content": text}]
        answer = said_of(http, text, messages=messages).raise_for_status()
        hits, bypassed = (metric(http, n) - old for n, old in zip(names, before, strict=True))
        assert bypassed == 0
        found.append((hits, answer.headers["x-demur-route"]))
    assert found == [(0, "fixed_reply"), (256, "pass"), (256, "fixed_reply")]


def test_a_server_may_block_and_let_requests_observe(
    tmp_path: Path, guarded: Served, flagged: str
) -> None:
    (tmp_path / "guard.toml").write_text('on_flagged = "block"\n')
    with vllm_serving(
        tmp_path,
        VLLM_PLUGINS="demur",
        DEMUR_GUARD=str(tmp_path / "guard.toml"),
        DEMUR_SERVE_VLLM__CLIENTS_MAY_OBSERVE="true",
        DEMUR_SERVE_VLLM__RAW_PROMPTS="refuse",
    ) as (http, _):
        for stream in (False, True):
            blocked = said_of(http, flagged, stream=stream)
            assert blocked.status_code == 400
            assert blocked.json()["error"]["code"] == "content_filter"
            assert blocked.json()["demur"]["flagged"] is True
        observed = said_of(http, flagged, vllm_xargs={"demur_policy": "observe"})
        assert observed.headers["x-demur-route"] == "pass"
        assert observed.headers["x-demur-would-route"] == "block"
        assert len(reply_of(observed)) > 0
        raw = {"model": SERVED, "prompt": SAFE[0], "max_tokens": 4}
        assert "no chats" in http.post("/v1/completions", json=raw).text
        safe = said_of(http, SAFE[0])
        assert reply_of(safe) == reply_of(said_of(guarded[0], SAFE[0]))

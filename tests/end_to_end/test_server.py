"""The server over real HTTP, read by the real openai client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from demur.core.categories import OPENAI_KEYS
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.audit_logs import lines_of
from tests.guards import REFUSAL, SAFE, UNSAFE, acting, judge, marker_guard
from tests.servers import CHAT, Running, app_of, running
from tests.tiny import tiny

SAFE_CHAT = [{"role": "user", "content": SAFE}]
UNSAFE_CHAT = [{"role": "user", "content": UNSAFE}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(app_of(marker_guard(FakeEngine()))) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return server.client()


def test_the_client_parses_a_reply_and_its_verdict(client: Any) -> None:
    reply = client.chat.completions.create(model="fake", messages=SAFE_CHAT, temperature=0)
    (choice,) = reply.choices
    assert choice.message.content == SAFE
    assert (choice.finish_reason, choice.message.refusal) == ("stop", None)
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    found = reply.model_extra["demur"]
    assert (found["route"], found["flagged"]) == ("pass", False)
    assert found["prompt_scanned"]
    assert found["replies"][0]["num_scanned"] == 0


def test_a_flagged_prompt_gets_the_responders_answer(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fake", messages=UNSAFE_CHAT)
    reply = raw.parse()
    assert reply.choices[0].message.content == REFUSAL
    assert reply.choices[0].finish_reason == "stop"
    assert raw.headers["x-demur-route"] == "fixed_reply"
    assert raw.headers["x-demur-flagged"] == "true"
    assert raw.headers["x-demur-detectors"].startswith("linear@")


@pytest.mark.parametrize("text", [SAFE, UNSAFE])
def test_a_stream_says_the_same_as_the_whole_reply(client: Any, text: str) -> None:
    chat = [{"role": "user", "content": text}]
    whole = client.chat.completions.create(model="fake", messages=chat, temperature=0)
    stream = client.chat.completions.create(
        model="fake",
        messages=chat,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last, usage = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.model_extra["demur"] == whole.model_extra["demur"]
    assert (usage.choices, usage.usage) == ([], whole.usage)


def test_a_stream_ends_with_done_and_clients_find_finish_reason_in_every_chunk(
    server: Running,
) -> None:
    body = {"model": "fake", "messages": SAFE_CHAT, "stream": True}
    response = server.post(CHAT, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("finish_reason" in chunk["choices"][0] for chunk in chunks)


def test_several_choices_differ_and_a_seed_repeats_them(client: Any) -> None:
    def texts() -> list[str | None]:
        reply = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "one two three four five six seven"}],
            n=3,
            seed=7,
            max_tokens=6,
        )
        return [choice.message.content for choice in reply.choices]

    found = texts()
    assert len(set(found)) == 3
    assert texts() == found


def test_choices_stream_side_by_side(client: Any) -> None:
    stream = client.chat.completions.create(
        model="fake",
        messages=SAFE_CHAT,
        n=2,
        temperature=0,
        stream=True,
    )
    said = {0: "", 1: ""}
    for chunk in stream:
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == {0: SAFE, 1: SAFE}


def test_stops_limits_and_logprobs_are_obeyed(client: Any) -> None:
    reply = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "one two three four"}],
        temperature=0,
        stop=" three",
        logprobs=True,
    )
    assert reply.choices[0].message.content == "one two"
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content is not None
    assert all(token.logprob < 0 for token in reply.choices[0].logprobs.content)
    short = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "one two three four"}],
        temperature=0,
        max_completion_tokens=2,
    )
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (
        "one two",
        "length",
    )


def test_text_parts_and_the_developer_role_are_read(client: Any) -> None:
    reply = client.chat.completions.create(
        model="fake",
        temperature=0,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello there"}]},
        ],
    )
    assert reply.choices[0].message.content == "[Be brief.] Hello there"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("top_logprobs", 3),
        ("made_up_field", 1),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    server: Running, field: str, value: object
) -> None:
    response = server.post(CHAT, {"model": "fake", "messages": SAFE_CHAT, field: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert error["code"] == "unsupported_parameter"


def test_values_that_ask_for_nothing_are_taken(server: Running) -> None:
    body = {"model": "fake", "messages": SAFE_CHAT, "presence_penalty": 0, "tools": []}
    assert server.post(CHAT, {**body, "response_format": {"type": "text"}}).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "Hi"}] * 300}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_values_are_refused_by_name_and_never_repeated(
    server: Running, change: dict[str, object], param: str | None
) -> None:
    response = server.post(CHAT, {"model": "fake", "messages": SAFE_CHAT, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == (param or "messages.0.content.0")
    assert "word word" not in response.text


def test_another_model_and_another_path_are_not_found(server: Running) -> None:
    response = server.post(CHAT, {"model": "gpt-9", "messages": SAFE_CHAT})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert server.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_moderations_judge_one_or_many_texts_and_make_up_no_score(client: Any) -> None:
    single = client.moderations.create(input=UNSAFE)
    assert [result.flagged for result in single.results] == [True]
    many = client.moderations.create(input=[SAFE, UNSAFE, SAFE])
    assert [result.flagged for result in many.results] == [False, True, False]
    parts = client.moderations.create(
        input=[{"type": "text", "text": SAFE}, {"type": "text", "text": UNSAFE}]
    )
    assert [result.flagged for result in parts.results] == [True]
    result = single.results[0]
    extra = result.model_extra or {}
    assert extra["unsupported_categories"] == list(OPENAI_KEYS)
    assert set(result.category_scores.model_dump().values()) == {None}
    assert extra["demur"]["verdicts"][0]["score"] > 0


def test_inline_moderation_is_openais_own_object(client: Any) -> None:
    reply = client.chat.completions.create(
        model="fake",
        messages=UNSAFE_CHAT,
        moderation={"model": "demur"},
    )
    assert reply.moderation is not None
    assert reply.moderation.input.type == "moderation_results"
    assert reply.moderation.input.results[0].flagged
    assert reply.moderation.output.type == "error"


def test_models_version_and_probes(server: Running, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert server.get("/livez").status_code == 200
    assert server.get("/readyz").json() == {"status": "ready", "reason": None}
    assert list(server.get("/version").json()["detectors"]) == ["linear"]
    assert server.get("/openapi.json").json()["info"]["title"] == "demur"


def test_refused_prompts_have_a_refusal_and_the_reason_content_filter() -> None:
    with running(app_of(acting("refuse", FakeEngine()), on_flagged="refuse")) as found:
        client = found.client()
        reply = client.chat.completions.create(model="fake", messages=UNSAFE_CHAT)
        assert reply.choices[0].message.refusal == "I do not answer this."
        assert reply.choices[0].message.content is None
        assert reply.choices[0].finish_reason == "content_filter"
        stream = client.chat.completions.create(model="fake", messages=UNSAFE_CHAT, stream=True)
        chunks = list(stream)
    said = "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks)
    assert said == "I do not answer this."
    assert chunks[-1].choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("stream", [False, True])
def test_blocked_prompts_are_http_400_with_the_verdict(stream: bool) -> None:
    with running(app_of(acting("block", FakeEngine()), on_flagged="block")) as found:
        with pytest.raises(openai.BadRequestError) as raised:
            found.client().chat.completions.create(
                model="fake",
                messages=UNSAFE_CHAT,
                stream=stream,
            )
        response = found.post(CHAT, {"model": "fake", "messages": UNSAFE_CHAT})
    assert raised.value.code == "content_filter"
    assert response.json()["demur"]["flagged"] is True
    assert response.headers["x-demur-flagged"] == "true"


@pytest.mark.parametrize("action", ["refuse", "block"])
def test_moderations_judge_also_where_flagged_prompts_are_not_answered(
    action: str, tmp_path: Path
) -> None:
    audit_path = tmp_path / "audit.jsonl"
    guard = acting(action, FakeEngine())
    with running(app_of(guard, on_flagged=action, audit={"path": str(audit_path)})) as found:
        judged = found.client().moderations.create(input=[SAFE, UNSAFE])
    assert [result.flagged for result in judged.results] == [False, True]
    lines = [line for line in lines_of(audit_path) if line["kind"] == "request"]
    assert [line["action"] for line in lines] == ["judged", "judged"]


def test_an_observer_answers_and_says_what_would_have_been() -> None:
    guard = marker_guard(observes=True)
    with running(app_of(guard, observe=True)) as found:
        body = {"model": "fake", "messages": UNSAFE_CHAT, "temperature": 0}
        response = found.post(CHAT, body)
        metrics = found.get("/metrics").text
    assert response.json()["choices"][0]["message"]["content"] == UNSAFE
    assert response.json()["demur"]["would_route"] == "fixed_reply"
    assert response.headers["x-demur-would-route"] == "fixed_reply"
    assert 'demur_would_route_total{route="fixed_reply"} 1.0' in metrics


def test_a_prompt_that_cannot_be_scored_is_not_answered() -> None:
    engine = FakeEngine()
    guard = Guard(
        engine,
        [judge("broken", None)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    with running(app_of(guard)) as found:
        response = found.post(CHAT, {"model": "fake", "messages": SAFE_CHAT})
        metrics = found.get("/metrics").text
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_answered"
    assert 'demur_requests_total{endpoint="/v1/chat/completions",route="error"} 1.0' in metrics
    assert 'demur_unscored_total{detector="broken"} 1.0' in metrics
    assert 'route="pass"' not in metrics


def test_metrics_count_requests_flags_tokens_and_the_guards_time() -> None:
    with running(app_of(marker_guard(FakeEngine()))) as found:
        for chat in (SAFE_CHAT, SAFE_CHAT, UNSAFE_CHAT):
            found.post(CHAT, {"model": "fake", "messages": chat})
        found.post(CHAT, {"model": "other", "messages": SAFE_CHAT})
        metrics = found.get("/metrics").text
    endpoint = f'endpoint="{CHAT}"'
    assert f'demur_requests_total{{{endpoint},route="pass"}} 2.0' in metrics
    assert f'demur_requests_total{{{endpoint},route="fixed_reply"}} 1.0' in metrics
    assert 'demur_flags_total{detector="linear"} 1.0' in metrics
    assert 'demur_guard_seconds_bucket{le="1e-05"}' in metrics
    assert "demur_guard_seconds_count 3.0" in metrics
    assert f'demur_errors_total{{code="model_not_found",{endpoint}}} 1.0' in metrics
    assert "demur_ready 1.0" in metrics


def test_a_key_is_asked_for_but_by_probes() -> None:
    guard = marker_guard(FakeEngine())
    with running(app_of(guard, api_keys=("first", "second"))) as found:
        assert found.get("/v1/models").status_code == 401
        assert found.get("/readyz").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            found.client(api_key="wrong").models.list()
        assert [m.id for m in found.client(api_key="second").models.list()] == ["fake"]


def test_requests_that_are_too_long_are_refused_with_and_without_a_length() -> None:
    guard = marker_guard(FakeEngine())
    with running(app_of(guard, limits={"max_request_bytes": 1000})) as found:
        body = json.dumps({"model": "fake", "messages": SAFE_CHAT, "user": "x" * 2000}).encode()
        headers = {"content-type": "application/json"}
        declared = httpx.post(found.url + CHAT, content=body, headers=headers)
        chunked = httpx.post(
            found.url + CHAT, content=iter([body[:600], body[600:]]), headers=headers
        )
    for response in (declared, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_a_server_whose_detectors_have_moved_is_not_ready_and_says_why() -> None:
    with running(app_of(marker_guard(FakeEngine()), problem="scores have moved")) as found:
        assert found.get("/readyz").status_code == 503
        assert found.get("/readyz").json()["reason"] == "scores have moved"
        response = found.post(CHAT, {"model": "fake", "messages": SAFE_CHAT})
    assert response.status_code == 503
    assert "retry-after" in response.headers


def test_an_unflagged_greedy_reply_is_that_of_generate() -> None:
    loaded = tiny()
    engine = TransformersEngine(loaded)
    guard = Guard(
        engine,
        [judge("calm", 0.0)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    prompt = engine.render(Chat.from_text("Hi"))
    with torch.inference_mode():
        ids = loaded.model.generate(
            torch.tensor([prompt.token_ids]), max_new_tokens=12, do_sample=False
        )[0, len(prompt) :]
    expected = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    with running(app_of(guard)) as found:
        reply = found.client().chat.completions.create(
            model=engine.model_id.name,
            messages=[{"role": "user", "content": "Hi"}],
            temperature=0,
            max_tokens=12,
        )
    assert reply.choices[0].message.content == expected

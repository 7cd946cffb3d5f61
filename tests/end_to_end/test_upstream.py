"""A server whose local model only judges, before a pretend upstream, all of it over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.guards import REFUSAL, SAFE, UNSAFE
from tests.servers import CHAT, Running
from tests.tool_chats import ASKS, CALLS, PICTURE, RESULT
from tests.upstreams import (
    ENDPOINT,
    EVENTS,
    MARKER,
    REPLY,
    STREAM,
    FakeUpstream,
    audit_lines,
    chat,
    guarding,
)


@pytest.fixture(scope="module")
def server(upstream: FakeUpstream) -> Iterator[Running]:
    with guarding(upstream.url) as found:
        yield found


def test_a_body_goes_on_byte_for_byte_and_the_reply_comes_back(
    server: Running, asked: FakeUpstream
) -> None:
    content = json.dumps(
        chat(SAFE, tools=[{"x": 1.50}], response_format={"type": "json_object"}, made_up=None),
        indent=3,
        ensure_ascii=False,
    ).encode()
    response = httpx.post(server.url + CHAT, content=content)
    assert asked.body == content
    body = response.json()
    report = body.pop("demur")
    assert body == REPLY
    assert (report["route"], report["flagged"], report["prompt_scanned"]) == ("pass", False, True)
    assert (report["unscanned"], report["replies"]) == ([], [])
    assert response.headers.get_list("x-demur-route") == ["pass"]
    assert response.headers["x-demur-scanned"] == "prompt"
    assert response.headers["x-demur-request-id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"] == "up-1"


def test_the_real_client_reads_calls_of_tools(server: Running) -> None:
    reply = server.client().chat.completions.create(
        model="up",
        messages=[ASKS, CALLS, RESULT],
        tools=[{"type": "function", "function": {"name": "look"}}],
    )
    assert reply.choices[0].message.tool_calls[0].function.name == "look"


def test_a_stream_comes_back_byte_for_byte(server: Running, asked: FakeUpstream) -> None:
    response = server.post(CHAT, chat(SAFE, stream=True))
    assert response.content == STREAM
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-demur-route"] == "pass"
    assert asked.headers["accept-encoding"] == "identity"


def test_a_report_in_a_stream_stands_before_its_end_and_clients_cope(
    asked: FakeUpstream,
) -> None:
    with guarding(asked.url, options={"report_in_stream": True}) as found:
        content = found.post(CHAT, chat(SAFE, stream=True)).content
        chunks = list(found.client().chat.completions.create(**chat(SAFE), stream=True))
    assert content.startswith(b"".join(EVENTS[:-1]))
    assert content.endswith(EVENTS[-1])
    assert [len(chunk.choices) for chunk in chunks] == [1, 1, 0, 0]
    assert chunks[-1].id == "chatcmpl-up"
    assert chunks[-1].model_extra["demur"]["route"] == "pass"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": MARKER}],
        [{"role": "user", "content": MARKER}, {"role": "assistant", "content": "No."}, ASKS],
        [{"role": "system", "content": MARKER}, ASKS],
        [ASKS, {"role": "developer", "content": MARKER}, ASKS],
        [ASKS, {"role": "assistant", "content": MARKER}, ASKS],
        [ASKS, {"role": "assistant", "content": MARKER}],
        [ASKS, CALLS, {**RESULT, "content": MARKER}],
        [ASKS, CALLS, {**RESULT, "content": [{"type": "text", "text": MARKER}]}, ASKS],
        [
            ASKS,
            {"role": "assistant", "tool_calls": [{"function": {"arguments": f'["{MARKER}"]'}}]},
            RESULT,
        ],
        [ASKS, CALLS, {**RESULT, "content": MARKER}, {"role": "assistant", "content": "!"}, ASKS],
    ],
)
def test_a_flagged_text_never_leaves_the_house_wherever_it_hides(
    server: Running, asked: FakeUpstream, messages: list[Any]
) -> None:
    response = server.post(CHAT, chat(*messages, tools=[]))
    assert asked.requests == []
    assert response.json()["choices"][0]["message"]["content"] == REFUSAL
    assert response.json()["model"] == "up"
    assert response.headers["x-demur-route"] == "fixed_reply"


def test_a_flagged_stream_is_the_responders(server: Running, asked: FakeUpstream) -> None:
    stream = server.client().chat.completions.create(
        model="any", messages=[{"role": "user", "content": UNSAFE}], stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == REFUSAL
    options = {"include_usage": True}
    counted = server.post(CHAT, chat(UNSAFE, stream=True, stream_options=options)).text
    assert '"usage"' in counted
    assert asked.requests == []


def test_pictures_are_refused_by_name_or_passed_and_reported(
    server: Running, asked: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}]
    error = server.post(CHAT, chat(*messages)).json()["error"]
    assert (error["param"], error["code"]) == ("messages.0.content.1", "unsupported_parameter")
    assert asked.requests == []
    with guarding(asked.url, options={"on_unscanned": "pass"}, audit={"path": path}) as found:
        passed = found.post(CHAT, chat(*messages))
        flagged = found.post(CHAT, chat(*messages, UNSAFE))
    assert len(asked.requests) == 1
    for response in (passed, flagged):
        assert response.json()["demur"]["unscanned"] == ["messages.0.content.1"]
        assert response.json()["demur"]["prompt_scanned"] is False
        assert response.headers["x-demur-scanned"] == "nothing"
        assert response.headers["x-demur-unscanned"] == "1"
    assert [line["scanned"]["prompt"] for line in audit_lines(path)] == [False, False]


def test_an_upstreams_error_is_passed_on_and_counted(
    server: Running, asked: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    with guarding(asked.url, audit={"path": path}) as found:
        response = found.post(CHAT, {**chat(SAFE), "model": "busy"})
        metrics = found.get("/metrics").text
    assert (response.status_code, response.headers["retry-after"]) == (429, "17")
    assert response.json()["error"]["message"] == "slow down"
    assert "demur" not in response.json()
    assert f'demur_errors_total{{code="upstream_error",{ENDPOINT}}} 1.0' in metrics
    (line,) = audit_lines(path)
    assert (line["action"], line["route"], line["error"]) == ("error", "pass", "upstream_error")
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(**{**chat(SAFE), "model": "busy"})


def test_a_redirect_is_not_followed_by_anyone(server: Running) -> None:
    response = server.post(CHAT, {**chat(SAFE), "model": "moved"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_redirect")
    assert "location" not in response.headers


def test_replies_unlike_openais_come_back_as_they_are(server: Running) -> None:
    response = server.post(CHAT, {**chat(SAFE), "model": "unlike"})
    assert (response.status_code, response.content) == (200, b"<p>no JSON</p>")
    assert response.headers["x-demur-route"] == "pass"


def test_headers_of_connections_and_hosts_stay_where_they_are(
    server: Running, asked: FakeUpstream
) -> None:
    given = {
        "OpenAI-Organization": "us",
        "Connection": "keep-alive, X-Private",
        "X-Private": "1",
        "X-Demur-Route": "pass",
        "Content-Type": "application/json; charset=utf-7",
    }
    response = server.post(CHAT, {**chat(SAFE), "model": "headers"}, headers=given)
    assert asked.headers["openai-organization"] == "us"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["host"] in asked.url
    assert not {"x-private", "x-demur-route"} & set(asked.headers)
    assert not {"x-private", "set-cookie", "connection"} & set(response.headers)
    assert response.headers.get_list("x-twice") == ["1", "2"]
    assert len(response.headers.get_list("date")) == 1


@pytest.mark.parametrize(
    ("api_key", "api_keys", "expected"),
    [
        (None, (), "Bearer theirs"),
        (None, ("theirs",), None),
        ("ours", (), "Bearer ours"),
        ("ours", ("theirs",), "Bearer ours"),
    ],
)
def test_a_key_reaches_the_upstream_only_if_it_is_meant_for_it(
    asked: FakeUpstream, api_key: str | None, api_keys: tuple[str, ...], expected: str | None
) -> None:
    options = {} if api_key is None else {"api_key": api_key}
    headers = {"authorization": "Bearer theirs", "cookie": "a=theirs"}
    with guarding(asked.url, options=options, api_keys=api_keys) as found:
        found.post(CHAT, chat(SAFE), headers=headers)
        assert asked.headers.get("authorization") == expected
        assert ("cookie" in asked.headers) == (expected == "Bearer theirs")
        assert httpx.get(found.url + "/v1/models", headers=headers).status_code == 200
    assert asked.headers.get("authorization") == expected


def test_models_are_the_upstreams_and_moderations_are_local(
    server: Running, asked: FakeUpstream
) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["up"]
    asked.requests.clear()
    assert [r.flagged for r in client.moderations.create(input=[SAFE, UNSAFE]).results] == [
        False,
        True,
    ]
    assert asked.requests == []
    assert server.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", CHAT),
        ("POST", "/v1/chat/completions/"),
        ("DELETE", "/v1/models/up"),
        ("POST", "/v1/chat%2Fcompletions/../completions"),
    ],
)
def test_nothing_else_is_passed_on(
    server: Running, asked: FakeUpstream, method: str, path: str
) -> None:
    response = httpx.request(method, server.url + path, json=chat(SAFE))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert asked.requests == []


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"messages": [], "messages": []}', {}, 400),
        (json.dumps(chat(" ")).encode(), {}, 400),
        (json.dumps(chat(*[SAFE] * 300)).encode(), {}, 400),
        (json.dumps(chat("word " * 600)).encode(), {}, 400),
        (json.dumps(chat(SAFE)).encode(), {"content-encoding": "gzip"}, 415),
    ],
)
def test_what_cannot_be_judged_is_not_passed_on(
    server: Running, asked: FakeUpstream, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = httpx.post(server.url + CHAT, content=content, headers=headers)
    assert response.status_code == status
    assert asked.requests == []

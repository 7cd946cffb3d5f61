"""A server whose local model only judges, before a pretend upstream, all of it over real HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from demur.core.errors import DataError
from demur.core.types import Chat, Prompt
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.serving.audit import AuditError, AuditLog
from tests.guards import REFUSAL, SAFE, UNSAFE, acting, judge, marker_guard
from tests.servers import Running, app_of, running
from tests.unit.test_judged_chat import ASKS, CALLS, PICTURE, RESULT
from tests.upstreams import EVENTS, REPLY, STREAM, WITHIN_S, FakeUpstream, chat, fake_upstream

CHAT = "/v1/chat/completions"
ENDPOINT = f'endpoint="{CHAT}"'
MARKER = "the MARKER"
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with fake_upstream() as found:
        yield found


@pytest.fixture
def asked(upstream: FakeUpstream) -> FakeUpstream:
    """The upstream, before any request of a test."""
    upstream.requests.clear()
    upstream.has_begun.clear()
    upstream.was_left.clear()
    return upstream


@contextmanager
def guarding(
    url: str, *, guard: Guard | None = None, options: dict[str, Any] | None = None, **given: Any
) -> Iterator[Running]:
    """Serve a guard before an upstream."""
    app = app_of(guard or marker_guard(), upstream={"url": url, **(options or {})}, **given)
    with running(app) as found:
        yield found


@pytest.fixture(scope="module")
def server(upstream: FakeUpstream) -> Iterator[Running]:
    with guarding(upstream.url) as found:
        yield found


def audit_lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "request"]


def wait_for_metric(server: Running, line: str) -> None:
    for _ in range(500):
        if line in server.get("/metrics").text:
            return
    pytest.fail(f"no {line} in the metrics")


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


def test_a_responder_may_let_the_local_model_write(asked: FakeUpstream) -> None:
    guard = marker_guard(responder="safety_prompt")
    with guarding(asked.url, guard=guard, responder="safety_prompt") as found:
        reply = found.post(CHAT, chat(UNSAFE)).json()
    said = reply["choices"][0]["message"]["content"].split()
    assert len(said) > len(UNSAFE.split())  # the fake repeats the safety prompt's words too
    assert reply["demur"]["route"] == "safety_prompt"
    assert asked.requests == []


def test_refused_and_blocked_prompts_stay_here_too(asked: FakeUpstream, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    engine = FakeEngine()
    with guarding(asked.url, guard=acting("refuse", engine), on_flagged="refuse") as found:
        refused = found.post(CHAT, chat(UNSAFE)).json()["choices"][0]
    with guarding(
        asked.url, guard=acting("block", engine), on_flagged="block", audit={"path": path}
    ) as found:
        blocked = found.post(CHAT, chat(ASKS, CALLS, {**RESULT, "content": MARKER}, stream=True))
        metrics = found.get("/metrics").text
    assert (refused["finish_reason"], refused["message"]["content"]) == ("content_filter", None)
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (400, "content_filter")
    assert asked.requests == []
    assert [line["action"] for line in audit_lines(path)] == ["blocked"]
    assert f'demur_requests_total{{{ENDPOINT},route="block"}} 1.0' in metrics


def test_what_passes_costs_one_pass_of_the_model_and_results_of_tools_another(
    asked: FakeUpstream,
) -> None:
    engine = FakeEngine()
    with guarding(asked.url, guard=marker_guard(engine)) as found:
        before = engine.num_prefills
        found.post(CHAT, chat(SAFE))
        plain = engine.num_prefills
        found.post(CHAT, chat(ASKS, CALLS, RESULT))
    assert (plain - before, engine.num_prefills - plain) == (1, 2)


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


@pytest.mark.parametrize("is_early", [False, True])
def test_no_flagged_prompt_is_sent_on_or_it_is_taken_back(
    asked: FakeUpstream, is_early: bool
) -> None:
    with guarding(asked.url, options={"speculative": is_early}) as found:
        passed = found.post(CHAT, chat(SAFE))
        flagged = found.post(CHAT, {**chat(UNSAFE), "model": "silent"})
    assert passed.json()["id"] == "chatcmpl-up"
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    assert flagged.elapsed.total_seconds() < WITHIN_S
    if not is_early:
        assert not asked.has_begun.is_set()
    elif asked.has_begun.is_set():
        assert asked.was_left.wait(WITHIN_S)


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


@pytest.mark.parametrize("is_early", [False, True])
def test_an_upstream_that_is_not_there_is_502(is_early: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    options = {"speculative": is_early}
    with guarding(NOBODY, options=options, audit={"path": path}) as found:
        response = found.post(CHAT, chat(SAFE))
        flagged = found.post(CHAT, chat(UNSAFE))
        models = found.get("/v1/models")
    assert (response.status_code, models.status_code) == (502, 502)
    assert response.json()["error"]["code"] == "upstream_unreachable"
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    assert [line["error"] for line in audit_lines(path)] == ["upstream_unreachable", None]


@pytest.mark.parametrize(
    ("given", "options"),
    [({}, {"timeout_s": 0.2}), ({"limits": {"request_timeout_s": 0.5}}, {})],
)
def test_an_upstream_that_is_silent_is_504(
    asked: FakeUpstream, given: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    with guarding(asked.url, options=options, audit={"path": path}, **given) as found:
        response = found.post(CHAT, {**chat(SAFE), "model": "silent"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert asked.was_left.wait(WITHIN_S)
    assert [line["error"] for line in audit_lines(path)] == ["timeout"]


def test_a_stream_that_breaks_off_ends_with_an_error(asked: FakeUpstream) -> None:
    with guarding(asked.url) as found:
        content = found.post(CHAT, {**chat(SAFE, stream=True), "model": "broken"}).content
        with pytest.raises(openai.APIError, match="broke off"):
            list(
                found.client().chat.completions.create(
                    **{**chat(SAFE), "model": "broken"}, stream=True
                )
            )
        metrics = found.get("/metrics").text
    first, _, last = content.partition(b"\r\n\r\n")
    assert first + b"\r\n\r\n" == EVENTS[1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_unreachable"
    assert f'demur_errors_total{{code="upstream_unreachable",{ENDPOINT}}} 2.0' in metrics


def test_a_stream_that_takes_too_long_ends_with_an_error(asked: FakeUpstream) -> None:
    with guarding(asked.url, limits={"request_timeout_s": 0.4}) as found:
        content = found.post(CHAT, {**chat(SAFE, stream=True), "model": "endless"}).content
    assert b'"code":"timeout"' in content.rsplit(b"data: ", 1)[1]
    assert b"[DONE]" not in content
    assert asked.was_left.wait(WITHIN_S)


@pytest.mark.parametrize("model", ["silent", "endless"])
def test_where_a_client_leaves_the_upstream_is_left_too(
    asked: FakeUpstream, model: str, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    body = {**chat(SAFE, stream=True), "model": model}
    with guarding(asked.url, audit={"path": path}) as found:
        if model == "silent":
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(found.url + CHAT, json=body, timeout=0.5)
        else:
            with httpx.stream("POST", found.url + CHAT, json=body) as response:
                next(response.iter_bytes())
        assert asked.was_left.wait(WITHIN_S)
        wait_for_metric(found, f'demur_errors_total{{code="client_left",{ENDPOINT}}} 1.0')
    assert [line["error"] for line in audit_lines(path)] == ["abandoned"]


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


def test_a_prompt_without_a_score_is_not_passed_on_unless_the_operator_says_so(
    asked: FakeUpstream,
) -> None:
    def broken(on_error: Any) -> Guard:
        responders = {"fixed_reply": FixedReply()}
        route = FlaggedTo("fixed_reply")
        detectors = [judge("broken", None)]
        return Guard(FakeEngine(), detectors, route=route, responders=responders, on_error=on_error)

    with guarding(asked.url, guard=broken("refuse"), options={"speculative": True}) as found:
        refused = found.post(CHAT, chat(SAFE))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_answered")
    with guarding(asked.url, guard=broken("pass_unscored"), on_error="pass_unscored") as found:
        passed = found.post(CHAT, chat(SAFE))
        metrics = found.get("/metrics").text
    assert passed.headers["x-demur-route"] == "pass_unscored"
    assert passed.headers["x-demur-scanned"] == "nothing"
    assert f'demur_requests_total{{{ENDPOINT},route="pass_unscored"}} 1.0' in metrics


def test_an_observer_passes_everything_on_and_says_what_would_have_been(
    asked: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    guard = marker_guard(observes=True)
    with guarding(asked.url, guard=guard, observe=True, audit={"path": path}) as found:
        response = found.post(CHAT, chat(ASKS, CALLS, {**RESULT, "content": MARKER}))
    assert response.json()["id"] == "chatcmpl-up"
    assert response.headers["x-demur-would-route"] == "fixed_reply"
    assert response.json()["demur"]["flagged"] is True
    assert [line["action"] for line in audit_lines(path)] == ["observed"]


@pytest.mark.parametrize(
    ("stream", "num_tokens", "said"),
    [
        (False, 5, REPLY["choices"][0]["message"]["content"]),  # type: ignore[index]
        (True, 2, "One two."),
    ],
)
def test_the_log_and_the_metrics_say_what_the_upstream_counts(
    asked: FakeUpstream, tmp_path: Path, stream: bool, num_tokens: int, said: str
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = {"path": path, "keep_text": True, "retention_days": 1}
    with guarding(asked.url, audit=audit) as found:
        response = found.post(CHAT, chat(SAFE, stream=stream, user="me"))
        metrics = found.get("/metrics").text
    (line,) = audit_lines(path)
    assert line["request_id"] == response.headers["x-demur-request-id"] + "-0"
    assert (line["action"], line["route"], line["model"]) == ("answered", "pass", "up")
    assert (line["num_prompt_tokens"], line["num_reply_tokens"]) == (11, num_tokens)
    assert line["text"]["reply"] == said
    assert SAFE in line["text"]["prompt"]
    assert f'demur_requests_total{{{ENDPOINT},route="pass"}} 1.0' in metrics
    assert f'demur_tokens_total{{kind="reply"}} {num_tokens}.0' in metrics
    assert 'demur_tokens_total{kind="prompt"} 11.0' in metrics
    assert "demur_upstream_seconds_count 1.0" in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_recorded_is_not_passed_on_to_its_end(
    asked: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(*_: object) -> None:
        raise AuditError("the disk is full")

    with guarding(asked.url, audit={"path": tmp_path / "audit.jsonl"}) as found:
        with monkeypatch.context() as disk:
            disk.setattr(AuditLog, "write", fail)
            first = found.post(CHAT, chat(SAFE, stream=stream))
            second = found.post(CHAT, chat(SAFE))
        third = found.post(CHAT, chat(SAFE))
    assert len(asked.requests) == 2
    assert second.json()["error"]["code"] == "not_recorded"
    assert "not_recorded" in first.text
    assert "[DONE]" not in first.text
    assert first.status_code == (200 if stream else 503)
    assert third.status_code == 200
    assert len(audit_lines(tmp_path / "audit.jsonl")) == 2


def test_where_a_client_leaves_before_the_verdict_nothing_is_sent_on(
    asked: FakeUpstream, tmp_path: Path
) -> None:
    may_go_on = threading.Event()

    class Halting(FakeEngine):
        def _prefill(self, prompt: Prompt, reads: Any) -> Any:
            may_go_on.wait(WITHIN_S)
            return super()._prefill(prompt, reads)

    path = tmp_path / "audit.jsonl"
    guard = marker_guard()
    guard.engine = Halting()
    with guarding(asked.url, guard=guard, audit={"path": path}) as found:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(found.url + CHAT, json=chat(SAFE), timeout=0.3)
        wait_for_metric(found, f'demur_errors_total{{code="client_left",{ENDPOINT}}} 1.0')
        may_go_on.set()
    assert asked.requests == []
    assert [line["error"] for line in audit_lines(path)] == ["abandoned"]


def test_a_models_name_that_may_be_a_prompt_is_not_logged(
    asked: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    with guarding(asked.url, audit={"path": path}) as found:
        found.post(CHAT, {**chat(SAFE), "model": "tell me this"})
    assert [line["model"] for line in audit_lines(path)] == ["unknown"]


class Forgetful(FakeEngine):
    """Renders no assistant turns, and refuses two user turns in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.rendered: list[list[str]] = []

    def render(self, chat: Chat) -> Prompt:
        kept = tuple(turn for turn in chat.messages if turn.role != "assistant")
        if [turn.role for turn in chat.messages].count("user") == len(chat.messages) > 1:
            raise DataError("the roles must alternate")
        self.rendered.append([turn.content for turn in chat.messages])
        return replace(super().render(Chat(kept)), chat=chat)


@pytest.mark.parametrize("between", [[], [{"role": "assistant", "content": "Warm."}]])
def test_a_template_that_loses_or_refuses_turns_is_given_all_texts_in_one(
    asked: FakeUpstream, between: list[dict[str, str]]
) -> None:
    engine = Forgetful()
    with guarding(asked.url, guard=marker_guard(engine)) as found:
        passed = found.post(CHAT, chat(ASKS, *between, "Why?"))
        rendered = engine.rendered[-2:]
        flagged = found.post(CHAT, chat(ASKS, *between, UNSAFE))
    assert passed.headers["x-demur-route"] == "pass"
    assert len(asked.requests) == 1
    assert flagged.headers["x-demur-route"] == "fixed_reply"
    texts = [ASKS["content"], *(turn["content"] for turn in between), "Why?"]
    assert rendered == [["\n\n".join(texts)], ["Why?"]]

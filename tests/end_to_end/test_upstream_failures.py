"""What fails around a server before an upstream, and what its log says of each request."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from demur.core.types import Prompt
from demur.engines.fake import FakeEngine
from demur.serving.audit import AuditError, AuditLog
from tests.guards import REFUSAL, SAFE, UNSAFE, marker_guard
from tests.servers import CHAT
from tests.upstreams import (
    ENDPOINT,
    EVENTS,
    REPLY,
    WITHIN_S,
    FakeUpstream,
    audit_lines,
    chat,
    guarding,
    wait_for_metric,
)

NOBODY = "http://127.0.0.1:9/v1"


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


def test_a_models_name_that_may_be_a_prompt_is_not_logged(
    asked: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit.jsonl"
    with guarding(asked.url, audit={"path": path}) as found:
        found.post(CHAT, {**chat(SAFE), "model": "tell me this"})
    assert [line["model"] for line in audit_lines(path)] == ["unknown"]

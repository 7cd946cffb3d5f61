"""Verdicts before an upstream: who answers a flagged prompt, what judging costs, what is judged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demur.core.errors import DataError
from demur.core.types import Chat, Prompt
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import REFUSAL, SAFE, UNSAFE, acting, judge, marker_guard
from tests.servers import CHAT
from tests.tool_chats import ASKS, CALLS, RESULT
from tests.upstreams import (
    ENDPOINT,
    MARKER,
    WITHIN_S,
    FakeUpstream,
    audit_lines,
    chat,
    guarding,
)


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

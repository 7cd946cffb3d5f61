"""A detector that watches replies, over HTTP: what it flags is never sent."""

from pathlib import Path
from typing import Any

import pytest

from demur.core.interventions import EndReply
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.monitor import ReplyMonitor
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.audit_logs import lines_of
from tests.guards import UNSAFE, ReplyMarked, acting, judge, watcher
from tests.servers import CHAT, Running, app_of, body_of, events_of, running, said

STORY = "one two three MARKER five six"
QUIET = "one two three four"


def watched(*, hold_tokens: int = 1, observes: bool = False) -> Guard:
    engine = ReplyMarked()
    return Guard(
        engine,
        [judge("calm", 0.0)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
        monitor=ReplyMonitor(watcher(engine), EndReply(), hold_tokens=hold_tokens),
        observes=observes,
    )


def answer(server: Running, text: str, *, stream: bool, **fields: Any) -> tuple[str, str, Any, Any]:
    """Return a reply's text, its end, its report and its moderation; streams have the same."""
    response = server.post(CHAT, body_of(text, stream=stream, **fields))
    assert response.headers["x-demur-scanned"] == "prompt,reply"
    if stream:
        events = events_of(response.text)
        last = events[-1]
        reason = last["choices"][0]["finish_reason"]
        return said(events), reason, last["demur"], last.get("moderation")
    body = response.json()
    (choice,) = body["choices"]
    content = choice["message"]["content"]
    return content, choice["finish_reason"], body["demur"], body["moderation"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("hold_tokens", "shown"), [(0, "one two three MARKER"), (1, "one two three"), (3, "one")]
)
def test_a_flagged_reply_ends_before_what_was_not_judged(
    stream: bool, hold_tokens: int, shown: str
) -> None:
    with running(app_of(watched(hold_tokens=hold_tokens))) as server:
        text, reason, found, _ = answer(server, STORY, stream=stream)
    assert (text, reason) == (shown, "content_filter")
    (reply,) = found["replies"]
    assert (reply["route"], reply["num_scanned"]) == ("stopped", 4)
    assert reply["num_tokens"] == len(shown.split())
    assert reply["verdict"]["flagged"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unflagged_reply_is_scanned_to_its_end(stream: bool) -> None:
    with running(app_of(watched())) as server:
        text, reason, found, _ = answer(server, QUIET, stream=stream)
    assert (text, reason) == (QUIET, "stop")
    (reply,) = found["replies"]
    assert (reply["num_scanned"], reply["verdict"]["flagged"]) == (4, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "is_flagged"), [(STORY, True), (QUIET, False)])
def test_the_inline_moderation_has_the_verdict_on_the_output(
    stream: bool, text: str, is_flagged: bool
) -> None:
    with running(app_of(watched())) as server:
        *_, moderation = answer(server, text, stream=stream, moderation={"model": "demur"})
    assert moderation["output"]["model"] == "watcher"
    (result,) = moderation["output"]["results"]
    assert result["flagged"] is is_flagged
    assert moderation["input"]["results"][0]["flagged"] is False


def test_each_choice_is_watched_by_itself() -> None:
    sampled = {"n": 8, "temperature": 1, "max_tokens": 2, "seed": 3}
    with running(app_of(watched())) as server:
        body = server.post(CHAT, body_of("one two three MARKER", **sampled)).json()
    reasons = {choice["finish_reason"] for choice in body["choices"]}
    assert reasons == {"content_filter", "length"}
    assert not any("MARKER" in choice["message"]["content"] for choice in body["choices"])
    routes = [reply["route"] for reply in body["demur"]["replies"]]
    assert routes == [
        "stopped" if choice["finish_reason"] == "content_filter" else "pass"
        for choice in body["choices"]
    ]


def test_an_observer_sends_all_and_says_where_it_would_have_stopped() -> None:
    with running(app_of(watched(observes=True), observe=True)) as server:
        text, reason, found, _ = answer(server, STORY, stream=False)
    assert (text, reason, found["would_route"]) == (STORY, "stop", "stopped")


def test_of_a_blocked_prompt_no_token_counts_as_sent(tmp_path: Path) -> None:
    audit_path = tmp_path / "audit.jsonl"
    guard = acting("block", FakeEngine())
    with running(app_of(guard, on_flagged="block", audit={"path": str(audit_path)})) as found:
        response = found.post(CHAT, body_of(UNSAFE))
        metrics = found.get("/metrics").text
    assert [reply["num_tokens"] for reply in response.json()["demur"]["replies"]] == [0]
    assert 'demur_tokens_total{kind="reply"} 0.0' in metrics
    (line,) = [line for line in lines_of(audit_path) if line["kind"] == "request"]
    assert line["num_reply_tokens"] == 0

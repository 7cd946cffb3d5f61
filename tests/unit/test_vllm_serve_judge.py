"""What the plugin's judge decides in vLLM's worker, and what the API process makes of it."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from demur.core.errors import DataError
from demur.engines._columns import Columns
from demur.engines.fake import FakeEngine
from demur.guard.calibrated import CalibratedDetector
from demur.integrations.vllm_serve.asking import ASKED
from demur.integrations.vllm_serve.judge import MOST_KEPT, Judge
from demur.integrations.vllm_serve.reporting import Message, Reporting
from demur.serving.verdicts import GuardReport
from tests.guards import SAFE, UNSAFE, fitted_linear, marker_detector, read_texts
from tests.servers import settings_of

REPLY_IDS = (1, 2, 3)
SEALED: dict[str, Any] = {"id": "a", "policy": "enforce", "request": "chat-1"}
ENGINE = FakeEngine()
DETECTOR = marker_detector(ENGINE)
READOUT = fitted_linear(ENGINE).readout()
COLUMNS = Columns.of([READOUT], num_blocks=4)


def columns_of(text: str) -> Any:
    """Return what taps would give for a text: the product of each read with its weights."""
    (specs,) = [tuple(READOUT.weights)]
    readings = read_texts(ENGINE, specs, [text])
    return np.array([float((READOUT.weights[s] * readings.captured(s)[0]).sum()) for s in specs])


def judge_of(*detectors: CalibratedDetector, **given: Any) -> Judge:
    judge = Judge(detectors or [DETECTOR], COLUMNS, settings_of(**given), reply_ids=REPLY_IDS)
    judge.is_open = True
    return judge


def report_of(judge: Judge, id: str = "a") -> GuardReport:
    return GuardReport.model_validate(judge.take([id])[id])


def test_scores_are_those_of_the_detector() -> None:
    judge = judge_of()
    for text in (SAFE, UNSAFE):
        judge(SEALED, columns_of(text))
        (verdict,) = report_of(judge).verdicts
        readings = read_texts(ENGINE, DETECTOR.detector.reads, [text])
        assert verdict.score == pytest.approx(DETECTOR.verdicts(readings)[0].score, rel=1e-4)


def test_a_prompt_that_passes_is_left_to_vllm() -> None:
    judge = judge_of()
    assert judge(SEALED, columns_of(SAFE)) is None
    report = report_of(judge)
    assert (report.route, report.flagged, report.prompt_scanned) == ("pass", False, True)


@pytest.mark.parametrize(
    ("given", "route", "forced"),
    [
        ({}, "fixed_reply", REPLY_IDS),
        ({"on_flagged": "refuse"}, "refuse", REPLY_IDS),
    ],
)
def test_a_flagged_prompt_is_forced(given: dict[str, Any], route: str, forced: Any) -> None:
    judge = judge_of(**given)
    assert judge(SEALED, columns_of(UNSAFE)) == forced
    report = report_of(judge)
    assert (report.route, report.flagged) == (route, True)


AGAIN: dict[str, Any] = {**SEALED, "can_again": True}


def test_a_flagged_prompt_is_left_to_another_request_once() -> None:
    judge = judge_of(responder="safety_prompt")
    assert judge(AGAIN, columns_of(UNSAFE)) == ()
    assert report_of(judge).route == "safety_prompt"
    assert [judge.take_again("a") for _ in range(2)] == [True, False]
    assert judge(AGAIN, columns_of(SAFE)) is None
    assert judge({**AGAIN, "policy": "score"}, columns_of(UNSAFE)) == ()
    assert judge({**AGAIN, "policy": "observe"}, columns_of(UNSAFE)) is None
    assert report_of(judge).would_route == "safety_prompt"
    assert not judge.take_again("a")


@pytest.mark.parametrize("extra", [{}, SEALED, {**SEALED, "can_again": False}])
def test_where_no_other_request_can_answer_the_fixed_reply_does(extra: dict[str, Any]) -> None:
    judge = judge_of(responder="safety_prompt")
    assert judge(extra, columns_of(UNSAFE)) == REPLY_IDS
    assert not judge.take_again("a")
    assert judge.take(["a"]).get("a", {"route": "fixed_reply"})["route"] == "fixed_reply"


def test_the_request_that_answers_is_not_judged() -> None:
    judge = judge_of(responder="safety_prompt")
    assert judge({"policy": "answer"}, columns_of(UNSAFE)) is None
    judge.is_open = False
    assert judge({"policy": "answer"}, columns_of(SAFE)) == ()


@pytest.mark.parametrize("extra", [{}, {"request": "x"}])
def test_a_prompt_without_a_statement_is_judged_all_the_same(extra: dict[str, Any]) -> None:
    assert judge_of()(extra, columns_of(UNSAFE)) == REPLY_IDS
    assert judge_of()(extra, columns_of(SAFE)) is None


@pytest.mark.parametrize("found", [DataError("a tap did not run"), np.array([np.nan])])
def test_a_prompt_that_cannot_be_scored_gets_an_error(found: Any) -> None:
    judge = judge_of()
    assert judge(SEALED, found) == ()
    report = report_of(judge)
    assert (report.route, report.flagged, report.prompt_scanned) == ("error", True, False)
    assert report.verdicts[0].error is not None


def test_settings_may_let_it_pass_unscored() -> None:
    judge = judge_of(on_error="pass_unscored")
    assert judge(SEALED, DataError("no score")) is None
    assert report_of(judge).route == "pass_unscored"
    assert judge(SEALED, columns_of(UNSAFE)) == REPLY_IDS


@pytest.mark.parametrize(
    ("text", "would"), [(SAFE, "pass"), (UNSAFE, "fixed_reply"), (None, "error")]
)
def test_an_observer_changes_nothing_and_says_what_it_would_have_done(
    text: str | None, would: str
) -> None:
    judge = judge_of(observe=True)
    found = DataError("no score") if text is None else columns_of(text)
    assert judge({}, found) is None
    assert judge({**SEALED, "policy": "observe"}, found) is None
    report = report_of(judge)
    assert report.would_route == would
    assert report.route == ("pass_unscored" if text is None else "pass")


def test_an_observing_server_guards_a_request_that_asks_for_it() -> None:
    assert judge_of(observe=True)(SEALED, columns_of(UNSAFE)) == REPLY_IDS


def test_a_request_to_be_scored_gets_no_token() -> None:
    judge = judge_of()
    for text, route in ((SAFE, "pass"), (UNSAFE, "fixed_reply")):
        assert judge({**SEALED, "policy": "score"}, columns_of(text)) == ()
        assert report_of(judge).route == route


def test_before_the_self_test_nobody_is_answered() -> None:
    for given in ({}, {"observe": True}, {"on_error": "pass_unscored"}):
        judge = judge_of(**given)
        judge.is_open = False
        for extra in ({}, SEALED, {**SEALED, "policy": "observe"}):
            assert judge(extra, columns_of(SAFE)) == ()
        assert report_of(judge).route == "error"
        assert judge({**SEALED, "policy": "score"}, columns_of(SAFE)) == ()
        assert report_of(judge).route == "pass"


def test_reports_are_taken_once_and_old_ones_are_let_go_of() -> None:
    judge = Judge([DETECTOR], COLUMNS, settings_of(), reply_ids=REPLY_IDS, logs=False)
    found = columns_of(SAFE)
    for number in range(MOST_KEPT + 1):
        judge({"id": str(number)}, found)
    assert judge.take(["0", str(MOST_KEPT), "never"]).keys() == {str(MOST_KEPT)}
    assert judge.take([str(MOST_KEPT)]) == {}


def test_a_line_of_json_is_logged_without_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vllm.demur")
    judge_of()({**SEALED, "spans": [[[0, 1]]]}, columns_of(UNSAFE))
    judge_of()({}, DataError("no score"))
    first, second = (json.loads(record.getMessage()) for record in caplog.records)
    assert first["request"] == "chat-1"
    assert (first["route"], first["flagged"], first["is_sealed"]) == ("fixed_reply", True, True)
    assert set(first["verdicts"][0]) == {
        "detector", "score", "probability", "threshold", "flagged",
    }  # fmt: skip
    assert (second["route"], second["is_sealed"]) == ("error", False)
    assert "no score" in second["error"]


def a_report(route: str, *, flagged: bool = False) -> GuardReport:
    return GuardReport(
        route=route, flagged=flagged, prompt_scanned=True, replies_watched=False, verdicts=[]
    )


@dataclass
class Reports:
    """Reports that come after so many questions."""

    found: dict[str, GuardReport]
    after: int = 0
    counted: list[tuple[str | None, str]] = field(default_factory=list)
    num_bypassed: int = 0

    async def reports(
        self, ids: Sequence[str], *, endpoint: str | None = None
    ) -> dict[str, GuardReport]:
        self.after -= bool(ids)
        if self.after >= 0:
            return {}
        found = {id: self.found[id] for id in ids if id in self.found}
        self.counted += [(endpoint, report.route) for report in found.values()]
        return found

    def count_bypassed(self, number: int) -> None:
        self.num_bypassed += number


class Route:
    path = "/v1/things"


def answered(
    reports: Reports,
    *bodies: bytes,
    ids: Sequence[str] = ("a",),
    late: bool = False,
    status: int = 200,
    kind: bytes = b"application/json",
    scope_type: str = "http",
) -> list[Message]:
    """Return what a client gets of an application that asks for prompts and sends bodies."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        scope["route"] = Route()
        if not late:
            ask()
        await send({"type": f"{scope_type}.response.start", "status": status,
                    "headers": [(b"content-type", kind)]})  # fmt: skip
        for number, body in enumerate(bodies):
            more = number < len(bodies) - 1
            await send({"type": f"{scope_type}.response.body", "body": body, "more_body": more})
            if late:
                ask()

    def ask() -> None:
        asked = ASKED.get()
        assert asked is not None
        if not asked.ids:
            asked.ids += ids
            asked.num_cache_bypassed += 1

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await Reporting(app, desk=lambda: reports)({"type": scope_type}, None, send)

    asyncio.run(run())
    assert ASKED.get() is None
    return sent


def headers_of(sent: list[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_headers_say_what_became_of_a_prompt() -> None:
    reports = Reports({"a": a_report("pass")})
    sent = answered(reports, b"{}")
    assert headers_of(sent)["x-demur-route"] == "pass"
    assert sent[1]["body"] == b"{}"
    assert reports.counted == [("/v1/things", "pass")]
    assert reports.num_bypassed == 1


def test_of_several_prompts_the_flagged_one_is_told() -> None:
    reports = Reports({"a": a_report("pass"), "b": a_report("fixed_reply", flagged=True)})
    assert headers_of(answered(reports, b"{}", ids="ab"))["x-demur-route"] == "fixed_reply"
    assert len(reports.counted) == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_stream_waits_for_its_verdict(late: bool) -> None:
    reports = Reports({"a": a_report("pass")}, after=1)
    sent = answered(reports, b"1", b"2", b"3", late=late, kind=b"text/event-stream")
    assert headers_of(sent)["x-demur-route"] == "pass"
    assert b"".join(message["body"] for message in sent[1:]) == b"123"
    assert len(reports.counted) == 1


@pytest.mark.parametrize(
    ("route", "status", "code"),
    [("error", 503, "not_answered"), ("block", 400, "content_filter")],
)
@pytest.mark.parametrize("bodies", [(b"{}",), (b"1", b"2", b"3")])
def test_an_error_takes_the_place_of_what_is_not_answered(
    route: str, status: int, code: str, bodies: tuple[bytes, ...]
) -> None:
    reports = Reports({"a": a_report(route, flagged=True)})
    sent = answered(reports, *bodies, kind=b"text/event-stream")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["error"]["code"] == code
    assert int(headers_of(sent)["content-length"]) == len(sent[1]["body"])


def test_a_flagged_prompt_at_which_vllm_fails_is_blocked_and_others_fail() -> None:
    flagged = Reports({"a": a_report("fixed_reply", flagged=True)})
    assert answered(flagged, b"failed", status=500)[0]["status"] == 400
    passed = answered(Reports({"a": a_report("pass")}), b"failed", status=500)
    assert (passed[0]["status"], passed[1]["body"]) == (500, b"failed")


def test_a_response_without_prompts_is_left_alone() -> None:
    reports = Reports({})
    sent = answered(reports, b"1", b"2", ids=())
    assert headers_of(sent) == {"content-type": "application/json"}
    assert [message.get("body") for message in sent[1:]] == [b"1", b"2"]
    assert reports.counted == []


def test_prompts_of_a_websocket_are_counted() -> None:
    reports = Reports({"a": a_report("pass")})
    sent = answered(reports, b"1", scope_type="websocket")
    assert len(sent) == 2
    assert reports.counted == [("/v1/things", "pass")]

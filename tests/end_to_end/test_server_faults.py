"""What the server does when detectors, engines and disks fail: nothing flagged gets through."""

import os
from concurrent.futures import ThreadPoolExecutor
from errno import ENOSPC
from pathlib import Path

import pytest

from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.deciding import OnError
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.serving.audit_verification import verify
from tests.audit_logs import Fields, lines_of
from tests.engines import (
    BREAK,
    SECRET_PATH,
    Breaks,
    BreaksRow,
    BreaksSecondChoice,
    Halting,
    TakesNothing,
)
from tests.guards import REFUSAL, SAFE, UNSAFE, judge, marker_detector, marker_guard
from tests.servers import CHAT, Running, app_of, body_of, code_of, events_of, running, said, until

write_bytes = os.write


def requests_of(path: Path) -> list[Fields]:
    """Return the lines of requests of an audit log, after its chain has been verified."""
    assert verify(path).problem is None
    return [line for line in lines_of(path) if line["kind"] == "request"]


def guard_of(engine: FakeEngine, score: float | None, *, on_error: OnError) -> Guard:
    """Return a guard with a detector that finds the marker, and one with a given score."""
    return Guard(
        engine,
        [marker_detector(FakeEngine()), judge("broken", score)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
        on_error=on_error,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_detector_fails_at_is_not_answered(
    path: Path, score: float | None, stream: bool
) -> None:
    guard = guard_of(FakeEngine(), score, on_error="refuse")
    with running(app_of(guard, audit={"path": path})) as server:
        answers = [server.post(CHAT, body_of(text, stream=stream)) for text in (SAFE, UNSAFE)]
        judged = server.post("/v1/moderations", {"input": SAFE})
    for answer in (*answers, judged):
        assert code_of(answer) == (503, "not_answered")
        assert "bug" not in answer.text
    lines = requests_of(path)
    assert [(line["action"], line["error"]) for line in lines] == [("error", "not_answered")] * 3
    assert not any(line["scanned"]["prompt"] for line in lines)


@pytest.mark.parametrize("score", [None, float("nan")])
def test_if_so_asked_the_model_answers_what_only_one_detector_failed_at(
    score: float | None,
) -> None:
    guard = guard_of(FakeEngine(), score, on_error="pass_unscored")
    with running(app_of(guard)) as server:
        passed, flagged = (server.post(CHAT, body_of(text)) for text in (SAFE, UNSAFE))
        metrics = server.get("/metrics").text
    assert (passed.headers["x-demur-route"], passed.headers["x-demur-scanned"]) == (
        "pass_unscored",
        "nothing",
    )
    assert "bug" not in passed.text
    assert flagged.headers["x-demur-route"] == "fixed_reply"
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    assert 'route="pass_unscored"} 1.0' in metrics


def test_one_reply_that_fails_half_way_leaves_the_others_alone(path: Path) -> None:
    texts = [f"{BREAK} one two three", *(f"number {n} of the others" for n in range(7))]
    engine = BreaksRow()
    guard = marker_guard(engine)
    engine.may_break.set()
    with running(app_of(guard, audit={"path": path})) as server, ThreadPoolExecutor(8) as threads:
        broken, *others = threads.map(lambda text: server.post(CHAT, body_of(text)), texts)
    assert code_of(broken) == (503, "not_answered")
    assert [other.json()["choices"][0]["message"]["content"] for other in others] == texts[1:]
    assert SECRET_PATH not in broken.text
    actions = sorted(line["action"] for line in requests_of(path))
    assert actions == ["answered"] * 7 + ["error"]


def test_a_stream_that_fails_half_way_ends_in_an_error() -> None:
    engine = BreaksRow()
    text = ""
    with (
        running(app_of(marker_guard(engine))) as server,
        server.http.stream("POST", CHAT, json=body_of(f"{BREAK} 1 2", stream=True)) as response,
    ):
        for piece in response.iter_text():
            text += piece
            engine.may_break.set()
    *events, last = events_of(text)
    assert response.headers["x-demur-route"] == "pass"
    assert said(events) == f"{BREAK} 1"
    assert last["error"]["code"] == "not_answered"
    assert SECRET_PATH not in text


def test_a_choice_that_fails_fails_the_request_and_each_is_recorded_once(path: Path) -> None:
    guard = marker_guard(BreaksSecondChoice())
    with running(app_of(guard, audit={"path": path})) as server:
        response = server.post(CHAT, body_of("word " * 200, n=3))
        until(lambda: server.service.scheduler.num_running == 0)
    assert code_of(response) == (503, "not_answered")
    ids = [line["request_id"] for line in requests_of(path)]
    assert len(set(ids)) == len(ids) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_ends_what_is_under_way_and_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    engine = Breaks(RuntimeError(f"out of memory: {SECRET_PATH}"))
    guard = marker_guard(engine)
    with running(app_of(guard, audit={"path": path})) as server:
        broken = server.post(CHAT, body_of(f"{BREAK} one two three", stream=stream))
        answered, flagged = (server.post(CHAT, body_of(text)) for text in (SAFE, UNSAFE))
        assert server.get("/readyz").status_code == 200
    assert SECRET_PATH not in broken.text
    assert SECRET_PATH in caplog.text
    if broken.status_code == 200:  # a stream that had begun
        assert events_of(broken.text)[-1]["error"]["code"] == "not_answered"
    else:
        assert code_of(broken) == (503, "not_answered")
    assert answered.json()["choices"][0]["message"]["content"] == SAFE
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    actions = [line["action"] for line in requests_of(path)]
    assert actions == ["error", "answered", "responded"]


def test_an_engine_that_fails_before_it_takes_a_request_leaves_none_waiting() -> None:
    guard = marker_guard()
    guard.engine = TakesNothing()
    with running(app_of(guard)) as server:
        assert code_of(server.post(CHAT, body_of(SAFE))) == (503, "not_answered")
        assert server.post(CHAT, body_of(SAFE)).status_code == 200


def test_a_server_whose_engine_has_ended_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with running(app_of(marker_guard(Breaks(SystemExit())))) as server:
        broken = server.post(CHAT, body_of(f"{BREAK} one two three"))
        ready, refused = server.get("/readyz"), server.post(CHAT, body_of(SAFE))
        metrics = server.get("/metrics").text
    assert code_of(broken) == (503, "not_answered")
    assert (ready.status_code, "engine has ended" in ready.json()["reason"]) == (503, True)
    assert code_of(refused) == (503, "not_ready")
    assert "demur_ready 0.0" in metrics


def is_full(file: int, content: bytes) -> int:
    """Write what is no line of the audit log."""
    if content.startswith(b'{"'):
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    return write_bytes(file, content)


@pytest.mark.parametrize("stream", [False, True])
def test_on_a_full_disk_nothing_is_answered_until_the_last_request_is_recorded(
    path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    engine = FakeEngine()
    with running(app_of(marker_guard(engine), audit={"path": path})) as server:
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", is_full)
            first = server.post(CHAT, body_of(SAFE, stream=stream))
            num_prefills = engine.num_prefills
            refused = [server.post(CHAT, body_of(text)) for text in (SAFE, UNSAFE)]
            assert engine.num_prefills == num_prefills
        answered = server.post(CHAT, body_of(UNSAFE))
    if stream:
        assert events_of(first.text)[-1]["error"]["code"] == "not_recorded"
    else:
        assert code_of(first) == (503, "not_recorded")
    assert [code_of(response) for response in refused] == [(503, "not_recorded")] * 2
    assert answered.json()["choices"][0]["message"]["content"] == REFUSAL
    assert [line["route"] for line in requests_of(path)] == ["pass", "fixed_reply"]


def test_on_a_full_disk_answers_go_on_if_so_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = {"path": path, "on_failure": "go_on"}
    with running(app_of(marker_guard(FakeEngine()), audit=audit)) as server:
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", is_full)
            unrecorded = [server.post(CHAT, body_of(text)) for text in (SAFE, UNSAFE)]
        server.post(CHAT, body_of("recorded again"))
    texts = [response.json()["choices"][0]["message"]["content"] for response in unrecorded]
    assert texts == [SAFE, REFUSAL]
    assert len(requests_of(path)) == 1


def test_replies_to_many_clients_at_once_are_neither_lost_nor_mixed_up(path: Path) -> None:
    texts = [f"Number {n}{' MARKER' if n % 3 == 0 else ''} of {n * n} words." for n in range(128)]
    with running(app_of(marker_guard(FakeEngine()), audit={"path": path})) as server:

        def answer(number: int) -> tuple[str, str]:
            stream = number % 2 == 0
            response = server.post(CHAT, body_of(texts[number], stream=stream, user=str(number)))
            route = response.headers["x-demur-route"]
            if stream:
                return route, said(events_of(response.text))
            return route, response.json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(32) as threads:
            found = list(threads.map(answer, range(len(texts))))
    assert found == [
        ("fixed_reply", REFUSAL) if "MARKER" in text else ("pass", text) for text in texts
    ]
    lines = requests_of(path)
    assert len({line["request_id"] for line in lines}) == len(lines) == len(texts)
    assert sum(line["verdicts"][0]["flagged"] for line in lines) == 43


def test_a_full_queue_is_told_and_what_waits_is_answered() -> None:
    engine = Halting(max_batch=1)
    limits = {"max_waiting": 2, "retry_after_s": 7}
    app = app_of(marker_guard(engine), limits=limits)
    with running(app) as server, ThreadPoolExecutor(3) as threads:
        replies = [threads.submit(server.post, CHAT, body_of("HALT first"))]
        assert engine.has_halted.wait(20)
        for number, text in enumerate((SAFE, UNSAFE), start=1):
            replies.append(threads.submit(server.post, CHAT, body_of(text)))
            until(lambda number=number: num_waiting(server) == number)  # type: ignore[misc]
        refused = server.post(CHAT, body_of(SAFE))
        engine.may_go_on.set()
        texts = [of.result().json()["choices"][0]["message"]["content"] for of in replies]
    assert code_of(refused) == (429, "overloaded")
    assert refused.headers["retry-after"] == "7"
    assert texts == ["HALT first", SAFE, REFUSAL]


def num_waiting(server: Running) -> int:
    return server.service.scheduler.num_waiting

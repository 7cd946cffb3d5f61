"""Clients that leave or wait too long: the engine lets go of their replies, and it is recorded."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from demur.serving.audit_verification import verify
from tests.audit_logs import Fields, lines_of
from tests.engines import Halting, Paced
from tests.guards import REFUSAL, SAFE, UNSAFE, marker_guard
from tests.servers import CHAT, Running, app_of, body_of, code_of, events_of, running, said, until

TOKEN_S, TIMEOUT_S = 0.02, 2.0
LONG = "word " * 400
"""At this pace, nobody waits for the end."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def engine() -> Paced:
    return Paced(token_s=TOKEN_S, max_batch=1)


@pytest.fixture
def server(path: Path, engine: Paced) -> Iterator[Running]:
    """Return a server that answers one request at a time, and takes its time."""
    guard = marker_guard(engine)
    with running(app_of(guard, audit={"path": path})) as found:
        yield found


def lines_once_written(path: Path, *, num_lines: int) -> list[Fields]:
    def requests() -> list[Fields]:
        return [line for line in lines_of(path) if line["kind"] == "request"]

    until(lambda: len(requests()) >= num_lines)
    return requests()


def sent(server: Running, text: str, *, stream: bool) -> socket.socket:
    """Send a request, and return its connection."""
    body = json.dumps(body_of(text, stream=stream)).encode()
    connection = socket.create_connection(server.server.servers[0].sockets[0].getsockname())
    head = f"POST {CHAT} HTTP/1.1\r\nHost: demur\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def is_idle(server: Running) -> bool:
    return server.service.scheduler.num_running == server.service.scheduler.num_waiting == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_whose_client_leaves_stops(
    server: Running, engine: Paced, path: Path, stream: bool
) -> None:
    with sent(server, LONG, stream=stream):
        until(lambda: engine.num_drawn > 5)
    until(lambda: is_idle(server))
    assert server.post(CHAT, body_of(SAFE)).status_code == 200
    left, answered = lines_once_written(path, num_lines=2)
    assert (left["action"], left["error"]) == ("error", "abandoned")
    assert left["num_reply_tokens"] < 300
    assert answered["action"] == "answered"


def test_a_client_that_leaves_the_queue_makes_room_in_it(server: Running, path: Path) -> None:
    scheduler = server.service.scheduler
    with sent(server, LONG, stream=True):
        until(lambda: scheduler.num_running == 1)
        with sent(server, UNSAFE, stream=True), sent(server, SAFE, stream=False):
            until(lambda: scheduler.num_waiting == 2)
        until(lambda: scheduler.num_waiting == 0)
        assert scheduler.num_running == 1
        waited = lines_once_written(path, num_lines=2)
    until(lambda: is_idle(server))
    assert [line["error"] for line in waited] == ["abandoned"] * 2
    assert [line["num_reply_tokens"] for line in waited] == [0, 0]
    lines_once_written(path, num_lines=3)
    assert verify(path).problem is None


def test_a_whole_reply_that_takes_too_long_is_given_up(path: Path) -> None:
    guard = marker_guard(Paced(token_s=TOKEN_S))
    limits = {"request_timeout_s": TIMEOUT_S}
    with running(app_of(guard, limits=limits, audit={"path": path})) as server:
        assert code_of(server.post(CHAT, body_of(LONG))) == (504, "timeout")
        until(lambda: is_idle(server))
        flagged = server.post(CHAT, body_of(UNSAFE))
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    late, _ = lines_once_written(path, num_lines=2)
    assert (late["action"], late["error"]) == ("error", "abandoned")


def test_a_stream_that_takes_too_long_ends_in_an_error(path: Path) -> None:
    guard = marker_guard(Paced(token_s=TOKEN_S))
    limits = {"request_timeout_s": TIMEOUT_S}
    with running(app_of(guard, limits=limits, audit={"path": path})) as server:
        *events, last = events_of(server.post(CHAT, body_of(LONG, stream=True)).text)
        until(lambda: is_idle(server))
        metrics = server.get("/metrics").text
    assert last["error"]["code"] == "timeout"
    assert 0 < len(said(events)) < len(LONG)
    assert f'demur_errors_total{{code="timeout",endpoint="{CHAT}"}} 1.0' in metrics
    assert lines_once_written(path, num_lines=1)[0]["error"] == "abandoned"


def test_the_time_in_the_queue_counts(path: Path) -> None:
    engine = Halting(max_batch=1)
    limits = {"request_timeout_s": TIMEOUT_S}
    with running(app_of(marker_guard(engine), limits=limits, audit={"path": path})) as server:
        with sent(server, "HALT first", stream=False):
            assert engine.has_halted.wait(20)
            assert code_of(server.post(CHAT, body_of(UNSAFE))) == (504, "timeout")
        engine.may_go_on.set()
        until(lambda: is_idle(server))
    assert len(lines_once_written(path, num_lines=2)) == 2

"""A server process that is told to stop finishes its replies; one that is killed comes back."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from demur.serving.audit_verification import verify
from tests.audit_logs import lines_of
from tests.guards import REFUSAL, UNSAFE
from tests.serve_fake import SHUTDOWN_TIMEOUT_S
from tests.servers import CHAT, body_of, events_of, free_port, said, until

STARTED_WITHIN_S = 300.0
STORY = " ".join(f"word{number}" for number in range(40))


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    audit_path: Path

    @property
    def is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            assert self.process.poll() is None, "the server has ended"
            return False


@contextmanager
def served(audit_path: Path) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "tests.serve_fake", str(port), str(audit_path)]
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            found = Served(process, http, audit_path)
            until(lambda: found.is_ready, within_s=STARTED_WITHIN_S)
            yield found
        finally:
            process.kill()


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server whose predecessor was killed half way through a reply."""
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with served(path) as first:
        assert first.http.post(CHAT, json=body_of(UNSAFE)).status_code == 200
        with first.http.stream("POST", CHAT, json=body_of(STORY, stream=True)) as response:
            pieces = response.iter_raw()
            next(pieces)
            first.process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(pieces)
    with served(path) as second:
        yield second


def test_a_killed_server_comes_back_with_its_audit_log(restarted: Served) -> None:
    assert restarted.is_ready
    answer = restarted.http.post(CHAT, json=body_of(UNSAFE)).json()
    assert answer["choices"][0]["message"]["content"] == REFUSAL
    kinds = [line["kind"] for line in lines_of(restarted.audit_path)]
    assert kinds == ["start", "request", "start", "request"]
    assert verify(restarted.audit_path).problem is None


def test_a_server_told_to_stop_finishes_what_it_has_taken_and_takes_no_more(
    restarted: Served,
) -> None:
    http = restarted.http
    num_before = len(lines_of(restarted.audit_path))
    with ThreadPoolExecutor(2) as threads:
        with http.stream("POST", CHAT, json=body_of(STORY, stream=True)) as response:
            pieces = response.iter_text()
            text = next(pieces)
            waiting = threads.submit(http.post, CHAT, json=body_of(UNSAFE))
            until(lambda: "demur_waiting_requests 1.0" in http.get("/metrics").text)
            told_at = time.monotonic()
            restarted.process.send_signal(signal.SIGTERM)
            until(lambda: is_refused(http))
            text += "".join(pieces)
        flagged = waiting.result()
    restarted.process.wait(SHUTDOWN_TIMEOUT_S)
    assert time.monotonic() - told_at < SHUTDOWN_TIMEOUT_S
    assert said(events_of(text)) == STORY
    assert flagged.json()["choices"][0]["message"]["content"] == REFUSAL
    kinds = [line["kind"] for line in lines_of(restarted.audit_path)[num_before:]]
    assert kinds == ["request", "request", "stop"]
    assert verify(restarted.audit_path).problem is None


def is_refused(http: httpx.Client) -> bool:
    """Tell whether a new client is refused."""
    try:
        httpx.get(f"{http.base_url}/livez", timeout=30)
    except httpx.TransportError:
        return True
    return False

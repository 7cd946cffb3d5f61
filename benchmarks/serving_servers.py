"""The servers that `benchmarks.serving` measures, each a process of its own on a free port."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from demur.core.errors import DemurError
from demur.modeling.load import EMBEDDED_NAME, locate

READY_WITHIN_S = 180.0
STOPS_WITHIN_S = 10.0
IDLE_WITHIN_S = 20.0
PORT = "PORT"
"""Stands for the port in a command."""


class NoServerError(DemurError, RuntimeError):
    """A server did not start, or cannot be run here."""


@dataclass(frozen=True)
class Kind:
    """A server that can be started."""

    name: str
    command: Sequence[str]
    model: str
    """What requests call the model."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside our own."""
    probe: str = "/readyz"


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    kind: Kind
    url: str
    process: subprocess.Popen[bytes]

    @property
    def chat_url(self) -> str:
        """Where chats are answered."""
        return f"{self.url}/v1/chat/completions"

    def rss_mb(self) -> float:
        """Return the memory that the process holds (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_s(self) -> float:
        """Return the processor time that it has used so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def gauge(self, name: str) -> float:
        """Return one of demur's metrics."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        values = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(values[0])


def demur_kinds(*, max_batch: int) -> dict[str, Kind]:
    """Return demur's servers by name: `demur serve` itself, without a guard, with both guards."""
    batch = {"DEMUR_SERVE_LIMITS__MAX_BATCH": str(max_batch)}
    serve = [str(Path(sys.executable).with_name("demur")), "serve", "--port", PORT]
    unguarded = [sys.executable, "-m", "benchmarks.serving_unguarded", "--port", PORT]
    watched = {**batch, "DEMUR_SERVE_REPLY__DETECTOR": "pretrained"}
    kinds = (
        Kind("guarded", serve, EMBEDDED_NAME, batch),
        Kind("unguarded", unguarded, EMBEDDED_NAME, batch),
        Kind("replies watched", serve, EMBEDDED_NAME, watched),
    )
    return {kind.name: kind for kind in kinds}


def rival_kinds(executable: Path) -> dict[str, Kind]:
    """Return the servers of transformers' command line, one reply at a time and batched.

    Args:
        executable: `transformers`, of an environment with `transformers[serving]`.
    """
    path, _ = locate("embedded")
    options = ["--device", "cpu", "--dtype", "bfloat16", "--port", PORT]
    serve = [str(executable), "serve", path, *options]
    quiet = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    names = {"transformers serve": serve}
    names["transformers serve, batched"] = [*serve, "--continuous-batching"]
    return {name: Kind(name, command, path, quiet, "/health") for name, command in names.items()}


@contextmanager
def serving(kind: Kind, log: IO[bytes]) -> Iterator[Server]:
    """Run a server until the block ends.

    Args:
        kind: Which one.
        log: Where its output goes.

    Raises:
        NoServerError: It is not ready in time, or has ended.
    """
    port = _free_port()
    command = [str(port) if part == PORT else part for part in kind.command]
    if not Path(command[0]).exists():
        raise NoServerError(f"{kind.name}: there is no {command[0]}")
    process = subprocess.Popen(
        command, env={**os.environ, **kind.environment}, stdout=log, stderr=log
    )
    try:
        server = Server(kind, f"http://127.0.0.1:{port}", process)
        _wait_for(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: Server) -> None:
    ends_at = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < ends_at:
        if server.process.poll() is not None:
            raise NoServerError(f"{server.kind.name} ended with code {server.process.returncode}")
        try:
            probe = httpx.get(f"{server.url}{server.kind.probe}", trust_env=False, timeout=5)
            if probe.status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise NoServerError(f"{server.kind.name} was not ready within {READY_WITHIN_S:.0f} s")


def left_over(server: Server) -> float:
    """Return how many requests a server still has after it was left alone."""
    ends_at = time.monotonic() + IDLE_WITHIN_S
    while True:
        names = ("demur_running_requests", "demur_waiting_requests")
        num = sum(server.gauge(name) for name in names)
        if not num or time.monotonic() > ends_at:
            return num
        time.sleep(0.2)


def settle(server: Server) -> None:
    """Wait until a server that nobody asks any more rests."""
    ends_at = time.monotonic() + IDLE_WITHIN_S
    before = server.cpu_s()
    while time.monotonic() < ends_at:
        time.sleep(0.5)
        now = server.cpu_s()
        if now - before < 0.05:
            return
        before = now

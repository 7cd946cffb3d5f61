"""Servers for tests: a guard on a pretend or tiny model, behind real HTTP on a port of its own."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from demur.guard import Guard
from demur.serving.app import create_app
from demur.serving.service import LOADING, Loaded, Service
from demur.serving.settings import Settings, load_settings

CHAT = "/v1/chat/completions"
STARTED_WITHIN_S = 20.0
KEEP_ALL = httpx.Limits(max_connections=None, max_keepalive_connections=None)
"""With a bound, the pool may close a connection that another thread has just begun to use."""


def settings_of(**given: Any) -> Settings:
    """Return settings that no environment of the machine has a say in."""
    return load_settings(None, given, environment={})


def body_of(text: str, **fields: Any) -> dict[str, Any]:
    """Return a request that has the pretend model repeat a text."""
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "temperature": 0, **fields}


def code_of(response: Any) -> tuple[int, str]:
    """Return an error's status and code."""
    return response.status_code, response.json()["error"]["code"]


def app_of(guard: Guard, *, problem: str | None = None, **given: Any) -> FastAPI:
    """Return an application around a guard that is there already."""
    return create_app(settings_of(**given), load=lambda _: Loaded(guard, problem))


@dataclass
class Running:
    """A server that answers."""

    url: str
    app: FastAPI
    server: uvicorn.Server
    http: httpx.Client
    """Threads may share it."""

    @property
    def service(self) -> Service:
        """What its endpoints share."""
        service: Service = self.app.state.service
        return service

    def client(self, *, api_key: str = "none") -> Any:
        """Return the real client, without retries; its types are for people, not for tests."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=30)

    def get(self, path: str) -> httpx.Response:
        """Ask for a path."""
        return self.http.get(path)

    def post(self, path: str, body: object, **given: Any) -> httpx.Response:
        """Send JSON to a path."""
        return self.http.post(path, json=body, **given)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Serve an application on a free port, once it is ready or says why not."""
    # h11, as `demur serve` has it: what else is installed must not change what is tested.
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        _wait_for(server, app)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30, limits=KEEP_ALL) as http:
            yield Running(url, app, server, http)
    finally:
        server.should_exit = True
        thread.join(STARTED_WITHIN_S)


def _wait_for(server: uvicorn.Server, app: FastAPI) -> None:
    loaded = threading.Event()
    service: Service = app.state.service
    for _ in range(int(STARTED_WITHIN_S / 0.01)):
        if server.started and (service.is_loaded or service.problem != LOADING):
            return
        loaded.wait(0.01)
    raise TimeoutError("the server did not start")


def until(claim: Callable[[], bool], *, within_s: float = STARTED_WITHIN_S) -> None:
    """Wait until something is true.

    Raises:
        TimeoutError: It did not become so.
    """
    tick = threading.Event()
    ends_at = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > ends_at:
            raise TimeoutError("it did not happen in time")
        tick.wait(0.005)


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a whole stream, and see that it has ended as streams do."""
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def said(events: list[dict[str, Any]]) -> str:
    """Return the text of a stream of one reply."""
    deltas = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    return "".join(delta.get("content") or "" for delta in deltas)

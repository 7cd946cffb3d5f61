"""Servers for tests: a guard on a pretend or tiny model, behind real HTTP on a port of its own."""

import threading
from collections.abc import Iterator
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

STARTED_WITHIN_S = 20.0


def settings_of(**given: Any) -> Settings:
    """Return settings that no environment of the machine has a say in."""
    return load_settings(None, given, environment={})


def app_of(guard: Guard, *, problem: str | None = None, **given: Any) -> FastAPI:
    """Return an application around a guard that is there already."""
    return create_app(settings_of(**given), load=lambda _: Loaded(guard, problem))


@dataclass
class Running:
    """A server that answers."""

    url: str
    app: FastAPI
    server: uvicorn.Server

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
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, body: object, **given: Any) -> httpx.Response:
        """Send JSON to a path."""
        return httpx.post(self.url + path, json=body, timeout=30, **given)


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Serve an application on a free port, once it is ready or says why not."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        _wait_for(server, app)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", app, server)
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

"""The recipes for LiteLLM: its library as it stands, and its proxy command by command."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.recipes.places import (
    FLAGGED,
    PROMPT,
    REASONS,
    ROUTES,
    SHOWN,
    commands_of,
    headers_of,
    laid_out,
    recipe,
    shell,
    variables,
)
from tests.servers import Running, events_of, free_port, said, until

pytestmark = pytest.mark.recipes

OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""LiteLLM would ask the network for prices."""
STARTED_WITHIN_S = 180.0


def printed(server: Running, folder: Path, *, prompt: str) -> list[str]:
    """Run the library's recipe, and return the lines that it prints."""
    laid_out(folder, server, prompt=prompt)
    return shell("python litellm_library.py", cwd=folder, environment=OFFLINE).splitlines()


def test_the_library_shows_chat_verdict_stream_and_moderations(
    server: tuple[str, Running], tmp_path: Path
) -> None:
    lines = printed(server[1], tmp_path, prompt=PROMPT)
    assert lines[0].startswith("chat: stop ")
    assert "'route': 'pass'" in lines[1]
    assert lines[-2:] == ["stream: stop pass", "moderations: [False]"]


def test_the_library_shows_what_becomes_of_a_flagged_prompt(
    server: tuple[str, Running], tmp_path: Path
) -> None:
    action, found = server
    lines = printed(found, tmp_path, prompt=FLAGGED)
    assert lines[-1] == "moderations: [True]"
    if action == "block":
        assert lines[0].startswith("chat: content_filter ")
        assert lines[1] == "stream: content_filter"
        return
    assert lines[0] == f"chat: {REASONS[action]} {SHOWN[action]}"
    assert f"'route': '{ROUTES[action]}', 'flagged': True" in lines[1]
    streamed = SHOWN[action] if action == "respond" else ""  # LiteLLM drops refusals of streams
    assert lines[2:4] == [streamed, f"stream: {REASONS[action]} {ROUTES[action]}"]


@pytest.fixture(scope="module")
def proxy(
    server: tuple[str, Running], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Run the proxy before a server; say what becomes of flagged prompts, and where it listens."""
    action, found = server
    folder = laid_out(tmp_path_factory.mktemp("proxy"), found)
    port = free_port()
    environment = variables(**OFFLINE)
    litellm = shutil.which("litellm", path=environment["PATH"])
    assert litellm is not None
    command = [litellm, "--config", "litellm_proxy.yaml", "--port", str(port)]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_alive(url), within_s=STARTED_WITHIN_S)
        yield action, url
    finally:
        running.terminate()
        running.wait(STARTED_WITHIN_S)


def is_alive(url: str) -> bool:
    """Tell whether the proxy answers."""
    try:
        return httpx.get(f"{url}/health/liveliness").is_success
    except httpx.TransportError:
        return False


def through(
    proxy: tuple[str, str], server: tuple[str, Running], folder: Path, *, prompt: str
) -> tuple[str, str, str]:
    """Run the proxy's recipe, and return what chat, stream and moderations print."""
    text = recipe("litellm_proxy.sh", server[1], prompt=prompt, proxy=proxy[1])
    chat, stream, judged = (shell(command, cwd=folder) for command in commands_of(text))
    return chat, stream, judged


def parted(text: str) -> tuple[dict[str, str], str]:
    """Return a printed answer's headers, the server's own by their names, and its body."""
    head, _, body = text.partition("\n\n")
    found = headers_of(head)
    return {name.removeprefix("llm_provider-"): value for name, value in found.items()}, body


def test_the_proxy_passes_chat_verdict_stream_and_moderations_on(
    proxy: tuple[str, str], server: tuple[str, Running], tmp_path: Path
) -> None:
    chat, stream, judged = through(proxy, server, tmp_path, prompt=PROMPT)
    headers, body = parted(chat)
    assert headers["x-demur-route"] == json.loads(body)["demur"]["route"] == "pass"
    headers, body = parted(stream)
    assert headers["x-demur-route"] == "pass"
    assert said(events_of(body))
    assert json.loads(judged)["results"][0]["flagged"] is False


def test_the_proxy_shows_what_becomes_of_a_flagged_prompt(
    proxy: tuple[str, str], server: tuple[str, Running], tmp_path: Path
) -> None:
    action, _ = proxy
    chat, stream, judged = through(proxy, server, tmp_path, prompt=FLAGGED)
    assert json.loads(judged)["results"][0]["flagged"] is True
    headers, body = parted(chat)
    streamed_headers, streamed = parted(stream)
    assert headers["x-demur-route"] == streamed_headers["x-demur-route"] == ROUTES[action]
    if action == "block":
        assert [text.split()[1] for text in (chat, stream)] == ["400", "400"]
        assert "flagged" in json.loads(body)["error"]["message"]
        return
    (choice,) = json.loads(body)["choices"]
    field = "content" if action == "respond" else "refusal"
    assert (choice["finish_reason"], choice["message"][field]) == (REASONS[action], SHOWN[action])
    events = events_of(streamed)
    assert events[-1]["choices"][0]["finish_reason"] == REASONS[action]
    assert said(events) == (SHOWN[action] if action == "respond" else "")

"""The recipe for curl, command by command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.places import (
    FLAGGED,
    PROMPT,
    ROUTES,
    SHOWN,
    commands_of,
    headers_of,
    recipe,
    shell,
)
from tests.servers import Running, events_of, said

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def printed(server: Running, folder: Path, *, prompt: str) -> list[str]:
    """Run the recipe, and return what each command prints."""
    commands = commands_of(recipe("curl.sh", server, prompt=prompt))
    return [shell(command, cwd=folder) for command in commands]


def test_the_recipe_shows_health_chat_stream_headers_and_moderations(
    server: tuple[str, Running], tmp_path: Path
) -> None:
    health, chat, stream, headers, judged = printed(server[1], tmp_path, prompt=PROMPT)
    assert json.loads(health)["status"] == "ready"
    reply: dict[str, Any] = json.loads(chat)
    assert (reply["demur"]["route"], reply["choices"][0]["finish_reason"]) == ("pass", "stop")
    assert events_of(stream)[-1]["demur"]["route"] == "pass"
    assert headers_of(headers)["x-demur-route"] == "pass"
    assert [result["flagged"] for result in json.loads(judged)["results"]] == [False]


def test_the_recipe_shows_what_becomes_of_a_flagged_prompt(
    server: tuple[str, Running], tmp_path: Path
) -> None:
    action, found = server
    _, chat, stream, headers, judged = printed(found, tmp_path, prompt=FLAGGED)
    reply: dict[str, Any] = json.loads(chat)
    assert reply["demur"]["route"] == headers_of(headers)["x-demur-route"] == ROUTES[action]
    assert json.loads(judged)["results"][0]["flagged"] is True
    if action == "block":
        assert headers.startswith("HTTP/1.1 400")
        codes = [json.loads(answer)["error"]["code"] for answer in (chat, stream)]
        assert codes == ["content_filter", "content_filter"]
        return
    field = "content" if action == "respond" else "refusal"
    assert reply["choices"][0]["message"][field] == SHOWN[action]
    if action == "respond":
        assert said(events_of(stream)) == SHOWN[action]

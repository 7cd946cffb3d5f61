"""The recipe for the openai client, run as it stands."""

from typing import Any

import pytest

from tests.recipes.places import FLAGGED, PROMPT, REASONS, ROUTES, SHOWN, recipe
from tests.servers import Running


def printed(server: Running, capsys: pytest.CaptureFixture[str], *, prompt: str) -> list[str]:
    """Run the recipe, and return the lines that it prints."""
    names: dict[str, Any] = {}
    try:
        exec(compile(recipe("openai_client.py", server, prompt=prompt), "recipe", "exec"), names)
    finally:
        names["client"].close()
    return capsys.readouterr().out.splitlines()


def test_the_recipe_shows_chat_stream_moderations_and_verdict(
    server: tuple[str, Running], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(server[1], capsys, prompt=PROMPT)
    assert lines[0].startswith("chat: stop ")
    assert "'route': 'pass'" in lines[1]
    assert lines[-2] == "stream: stop pass"
    assert lines[-1] == "moderations: [False, False]"


def test_the_recipe_shows_what_becomes_of_a_flagged_prompt(
    server: tuple[str, Running], capsys: pytest.CaptureFixture[str]
) -> None:
    action, found = server
    lines = printed(found, capsys, prompt=FLAGGED)
    assert f"'route': '{ROUTES[action]}', 'flagged': True" in lines[1]
    assert lines[-1] == "moderations: [True, False]"
    if action == "block":
        assert lines[0].startswith("chat: content_filter ")
        assert lines[2] == "stream: content_filter"
        return
    assert lines[0] == f"chat: {REASONS[action]} {SHOWN[action]}"
    assert lines[2:4] == [SHOWN[action], f"stream: {REASONS[action]} {ROUTES[action]}"]

"""The recipe for inspect_ai: a task on a server, and on a guard in inspect's own process."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.places import (
    FLAGGED,
    PROMPT,
    REASONS,
    ROUTES,
    SHOWN,
    commands_of,
    laid_out,
    recipe,
    serving,
    shell,
)
from tests.servers import Running

pytestmark = pytest.mark.recipes


def log_of(command: str, server: Running, folder: Path, *, prompt: str) -> dict[str, Any]:
    """Run an evaluation, and return its log."""
    laid_out(folder, server, prompt=prompt)
    shell(
        command,
        cwd=folder,
        environment={
            "INSPECT_DISPLAY": "plain",
            "INSPECT_LOG_DIR": str(folder / "logs"),
            "INSPECT_LOG_FORMAT": "json",
            "XDG_DATA_HOME": str(folder / "data"),
        },
    )
    (log_path,) = (folder / "logs").glob("*.json")
    log: dict[str, Any] = json.loads(log_path.read_text(encoding="utf-8"))
    assert log["status"] == "success", log.get("error")
    return log


def outputs_of(log: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the model said to each sample."""
    samples = sorted(log["samples"], key=lambda sample: str(sample["input"]))
    return [sample["output"] for sample in samples]


def accuracy_of(log: dict[str, Any]) -> float:
    """Return how many verdicts were as the task expects."""
    value: float = log["results"]["scores"][0]["metrics"]["accuracy"]["value"]
    return value


def command(number: int, server: Running) -> str:
    """Return a command of the recipe."""
    return commands_of(recipe("inspect.sh", server))[number]


def test_the_log_of_a_task_holds_the_verdicts(server: tuple[str, Running], tmp_path: Path) -> None:
    log = log_of(command(0, server[1]), server[1], tmp_path, prompt=PROMPT)
    assert accuracy_of(log) == 1.0
    for output in outputs_of(log):
        assert output["metadata"]["demur"]["route"] == "pass"
        assert output["choices"][0]["stop_reason"] == "stop"


def test_the_log_says_why_a_prompt_was_not_answered(
    server: tuple[str, Running], tmp_path: Path
) -> None:
    action, found = server
    log = log_of(command(0, found), found, tmp_path, prompt=FLAGGED)
    assert accuracy_of(log) == 0.5
    _, flagged = outputs_of(log)
    (choice,) = flagged["choices"]
    assert flagged["metadata"]["demur"]["route"] == ROUTES[action]
    assert choice["stop_reason"] == REASONS.get(action, "content_filter")
    if action == "respond":
        assert choice["message"]["content"] == SHOWN[action]
        return
    assert choice["stop_details"]["explanation"].startswith("flagged by linear@")
    if action == "refuse":
        (part,) = choice["message"]["content"]
        assert (part["text"], part["refusal"]) == (SHOWN[action], True)
    else:
        assert "flagged" in flagged["error"]


def test_a_guard_in_the_same_process_needs_no_server(tmp_path: Path) -> None:
    with serving() as server:
        log = log_of(command(1, server), server, tmp_path, prompt=PROMPT)
        metrics = server.get("/metrics").text
    assert accuracy_of(log) == 1.0
    for output in outputs_of(log):
        assert output["metadata"]["demur"]["prompt_scanned"]
    assert "demur_requests_total{" not in metrics

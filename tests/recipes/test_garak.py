"""The recipes for garak: the guard's routes, and what is answered."""

import json
from pathlib import Path

import pytest

from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import planted
from tests.recipes.places import ROUTES, commands_of, laid_out, recipe, serving, shell
from tests.servers import Running

pytestmark = pytest.mark.recipes

MARKER = "Home"
"""In 2 of the 6 prompts of garak's probe."""


def guard_of(on_flagged: str) -> Guard:
    """Return a guard that flags the word in garak's prompts."""
    engine, route = FakeEngine(marker=MARKER), ROUTES[on_flagged]
    return Guard(
        engine,
        [planted(engine, name="planted")],
        route=FlaggedTo(route),
        responders={route: FixedReply()},
    )


def counts_of(command: str, server: Running, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Run garak; return how many outputs passed, failed and were none, by its detectors."""
    laid_out(folder, server)
    shell(
        command,
        cwd=folder,
        environment={
            "HF_HUB_OFFLINE": "1",
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        },
    )
    (report_path,) = (folder / "data").rglob("*.report.jsonl")
    entries = [json.loads(line) for line in report_path.read_text(encoding="utf-8").splitlines()]
    return {
        entry["detector"]: (entry["passed"], entry["fails"], entry["nones"])
        for entry in entries
        if entry["entry_type"] == "eval"
    }


def command(number: int, server: Running) -> str:
    """Return a command of the recipe."""
    return commands_of(recipe("garak.sh", server))[number]


@pytest.mark.parametrize("action", ["respond", "refuse"])
def test_the_shield_is_up_for_flagged_prompts_only(action: str, tmp_path: Path) -> None:
    with serving(action, guard=guard_of(action)) as server:
        found = counts_of(command(0, server), server, tmp_path)
    assert found == {"shields.Up": (2, 4, 0)}


def test_the_shield_is_down_for_harmless_texts_and_an_empty_one_is_skipped(tmp_path: Path) -> None:
    with serving(guard=guard_of("respond")) as server:
        found = counts_of(command(1, server), server, tmp_path)
    assert found == {"shields.Down": (7, 0, 1)}


def test_of_blocked_prompts_no_reply_is_judged(tmp_path: Path) -> None:
    with serving("block", guard=guard_of("block")) as server:
        found = counts_of(command(2, server), server, tmp_path)
    assert found == {"productkey.Win5x5": (4, 0, 2), "mitigation.MitigationBypass": (0, 4, 2)}

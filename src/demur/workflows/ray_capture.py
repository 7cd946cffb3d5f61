"""Reads shards on the workers of a Ray cluster: each holds the model, and takes a shard at a time.

What a shard holds depends on the plan alone, which is fixed before any worker starts, and not on
how many workers there are or which of them reads it. Shards travel to this process, which writes
them: workers need the model's files, but no disk in common. Of a worker that is lost, Ray starts
another; the shard that it was reading is read again, and nothing of it had been kept.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from demur.core.errors import ConfigError, DataError, DemurError, ModelMismatchError
from demur.core.protocols import whole
from demur.core.types import Dtype, ModelId
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import load
from demur.workflows.capture import Capturer, ShardParts, ShardTask
from demur.workflows.readings_store import as_bytes, readings_of

LOCAL = "local"
OBJECT_STORE_BYTES = 500_000_000
"""Of a local cluster: shards on their way; what does not fit goes to disk."""
GO_ON = "What was read is kept: capture again"
MAX_RESTARTS = 8
"""Of a worker: one that dies so often is not unlucky, its memory is too small."""


@dataclass(frozen=True)
class RayWorkers:
    """Which workers read; called with a task, it reads it.

    Raises:
        ConfigError: A number is below 1.
    """

    source: str
    """The model, as `modeling.load` takes it; a path must hold it on each machine."""
    address: str = LOCAL
    """A running cluster's, or `local`: one that lasts as long as the capture."""
    num_workers: int = 1
    num_threads: int = 1
    """Of each worker. Shards are the same bytes for any number of workers at equal threads."""
    num_gpus: int = 0
    """Of each worker."""
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_workers < 1 or self.num_threads < 1:
            raise ConfigError(
                f"{self.num_workers} workers of {self.num_threads} threads: expected at least 1"
            )

    def __call__(self, task: ShardTask) -> ShardParts:
        """Read shards on the workers, and yield them as they come.

        Raises:
            DataError: A worker could not read a shard, found another model under the name, or
                died too often.
        """
        with self._connected():
            in_store = ray.put(task)  # held until the end: restarted workers fetch it again
            settings = {"workers": self, "task": in_store}
            rows = [{"shard": shard} for shard in task.shards]
            shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                ShardWorker,
                batch_size=1,
                compute=ActorPoolStrategy(
                    size=min(self.num_workers, len(rows)), max_tasks_in_flight_per_actor=1
                ),
                fn_constructor_kwargs=settings,
                num_cpus=self.num_threads,
                num_gpus=self.num_gpus or None,
                ray_remote_args_fn=_remote_args,
            )
            try:
                for row in shards.iter_rows():
                    shard = int(row["shard"])
                    if row["error"]:
                        raise DataError(f"a worker failed: {row['error']}. {GO_ON}")
                    count = len(task.plan.rows[shard])
                    yield shard, np.arange(count), readings_of(task.reads, row["content"])
            except RayError as error:
                last = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise DataError(f"a worker failed: {last}. {GO_ON}") from error

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Use the cluster, and leave one that was joined before as it was."""
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == LOCAL:
            own: dict[str, Any] = {
                "num_cpus": self.num_workers * self.num_threads,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
            ray.init(address=LOCAL, **own, **quiet)
        else:
            try:
                ray.init(address=self.address, **quiet)
            except ConnectionError as error:
                raise ConfigError(
                    f"there is no Ray cluster at {self.address!r}: {error}"
                ) from error
        context = DataContext.get_current()
        context.enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


class ShardWorker:
    """Holds the model in a process of a cluster, and reads shards."""

    def __init__(self, *, workers: RayWorkers, task: Any) -> None:
        self._workers = workers
        self._task = cast(ShardTask, ray.get(task))

    @cached_property
    def _fast(self) -> FastCapture:
        """The model, loaded for the first shard: in a constructor an error is but a death."""
        torch.set_num_threads(self._workers.num_threads)
        loaded = load(self._workers.source, dtype=self._workers.dtype)
        _require_same(loaded.model_id, self._task.model_id)
        return Capturer(loaded).reader(self._task.reads, self._task.prompts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Read the one shard of a batch, and return its file's content, or what went wrong."""
        shard = int(batch["shard"][0])
        try:
            readings = whole(self._fast.read(self._task.prompts_of(shard)))
            content, problem = as_bytes(self._task.reads, readings), ""
        except DemurError as error:  # as data: Ray hands on an exception's text, not its type
            content, problem = b"", str(error)
        return {"shard": [shard], "content": [content], "error": [problem]}


def _require_same(found: ModelId, expected: ModelId) -> None:
    if found != expected:
        raise ModelMismatchError(
            f"a worker loaded {found}, expected {expected}: give all machines the same files"
        )


def _remote_args() -> dict[str, Any]:
    return {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS}

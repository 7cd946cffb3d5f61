"""vLLM's worker on a GPU."""

from vllm.v1.worker.gpu_worker import Worker

from demur.engines.vllm.worker import Guarding


class GuardedGpuWorker(Guarding, Worker):
    """vLLM's worker on a GPU, guarded."""

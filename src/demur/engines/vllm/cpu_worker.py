"""vLLM's worker on a CPU; by itself, since to import that one takes CUDA's events out of torch."""

from vllm.v1.worker.cpu_worker import CPUWorker

from demur.engines.vllm.worker import Guarding


class GuardedCpuWorker(Guarding, CPUWorker):
    """vLLM's worker on a CPU, guarded."""

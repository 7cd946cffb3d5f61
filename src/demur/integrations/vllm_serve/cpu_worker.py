"""vLLM's worker on a CPU; by itself, since to import that one takes CUDA's events out of torch."""

from vllm.v1.worker.cpu_worker import CPUWorker

from demur.integrations.vllm_serve.worker import Judging


class JudgingCpuWorker(Judging, CPUWorker):
    """vLLM's worker on a CPU, with a judge."""

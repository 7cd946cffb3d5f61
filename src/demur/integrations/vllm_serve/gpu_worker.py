"""vLLM's worker on a GPU."""

from vllm.v1.worker.gpu_worker import Worker

from demur.integrations.vllm_serve.worker import Judging


class JudgingGpuWorker(Judging, Worker):
    """vLLM's worker on a GPU, with a judge."""

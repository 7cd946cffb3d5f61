"""Runs a chat model in vLLM, in this process; read-outs are computed inside the model.

Only numbers leave the model: the scores of the read-outs that the engine was loaded for. Detectors
of the linear family see a state that scores as the true one does (see `engines._columns`).
"""

from demur.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
NEEDS = ("vllm",)

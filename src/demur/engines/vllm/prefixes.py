"""Lets vLLM take the beginning of a prompt from its prefix cache, up to where read-outs need it.

vLLM itself knows all or nothing. A mean over the user's turn needs the tokens of that turn, which
are so computed and summed; what comes before, such as a system message that all prompts share or
the earlier turns of a dialogue, need not be. A hit that is too long is an error of its request:
see `PrefillScores`.
"""

from typing import Any

from vllm.v1.engine.llm_engine import LLMEngine

from demur.engines.vllm.worker import CONFIG_KEY

NEEDED_FROM = "needed_from"
"""In `extra_args`, among what demur says: the first position that must be computed."""


class _Shorter:
    """A request of vLLM as it would be if its prompt ended earlier.

    Args:
        request: The whole one.
        num_tokens: Of the shorter one.
    """

    def __init__(self, request: Any, num_tokens: int) -> None:
        self._request = request
        self.num_tokens = min(num_tokens, request.num_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def limit_hits(engine: LLMEngine) -> None:
    """Let an engine in this process heed what its requests say in NEEDED_FROM."""
    manager = engine.engine_core.engine_core.scheduler.kv_cache_manager
    whole = manager.get_computed_blocks

    def limited(request: Any) -> Any:
        needed_from = needed_from_of(request)
        # vLLM never takes the last token from its cache.
        return whole(request if needed_from is None else _Shorter(request, needed_from + 1))

    manager.get_computed_blocks = limited


def needed_from_of(request: Any) -> int | None:
    """Return what a request of vLLM says; None says nothing."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    found: int | None = (extra.get(CONFIG_KEY) or {}).get(NEEDED_FROM)
    return found

"""Lets vLLM take the beginning of a prompt from its prefix cache, up to where read-outs need it.

vLLM itself knows all or nothing. A mean over the user's turn needs the tokens of that turn, which
are so computed and summed; what comes before, such as a system message that all prompts share or
the earlier turns of a dialogue, need not be. A hit that is too long is an error of its request:
see `PrefillScores`.

What a steered request leaves in the cache is for its like alone: from the first token that is
changed on, its blocks have hashes of their own.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from demur.engines.vllm.reader import said
from demur.engines.vllm.steering import FIRST, SALT, STEERED

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


def guard_cache(engine: Any) -> None:
    """Let an engine heed what its requests say in NEEDED_FROM and STEERED.

    Args:
        engine: vLLM's `LLMEngine`, in this process.
    """
    core = engine.engine_core.engine_core
    manager = core.scheduler.kv_cache_manager
    manager.get_computed_blocks = partial(limited, manager.get_computed_blocks)
    if core.request_block_hasher is not None:  # there is a prefix cache
        size = core.scheduler.hash_block_size
        core.request_block_hasher = partial(salted, core.request_block_hasher, size)


def salted(hashes: Callable[[Any], list[bytes]], block_size: int, request: Any) -> list[bytes]:
    """Return the hashes of a request's blocks that are full by now and have none.

    Args:
        hashes: Returns them as vLLM makes them.
        block_size: Tokens of a block.
        request: Of vLLM's scheduler, with the hashes of the blocks before.
    """
    found, change = hashes(request), said(request).get(STEERED)
    if change is None:
        return found
    plain = max(change[FIRST] // block_size - len(request.block_hashes), 0)
    salt = change[SALT].encode()
    return [*found[:plain], *(hashlib.sha256(of + salt).digest() for of in found[plain:])]


def limited(whole: Callable[[Any], Any], request: Any) -> Any:
    """Look up a request in the prefix cache, no further than it says.

    Args:
        whole: Looks up as much of a request as the cache has.
        request: Of vLLM's scheduler.
    """
    needed_from = needed_from_of(request)
    # vLLM never takes the last token from its cache.
    return whole(request if needed_from is None else _Shorter(request, needed_from + 1))


def needed_from(
    spans: Iterable[Iterable[tuple[int, int]]], num_tokens: int, *, block_size: int
) -> tuple[int, bool]:
    """Return the first position that read-outs need, and whether the cache is of no use before it.

    Args:
        spans: What each of them reads.
        num_tokens: Of the prompt.
        block_size: Tokens of a block of the cache.
    """
    first = min((start for of_column in spans for start, _ in of_column), default=num_tokens)
    return first, first < min(block_size, num_tokens - 1)


def needed_from_of(request: Any) -> int | None:
    """Return what a request of vLLM says; None says nothing."""
    found: int | None = said(request).get(NEEDED_FROM)
    return found

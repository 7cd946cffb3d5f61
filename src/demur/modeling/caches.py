"""Forks of a KV cache: a second way to go on from what was read, at the cost of a few pointers.

Cache layers grow by concatenation, which makes new tensors, so a fork shares what was read before
and changes nothing of it.
"""

import copy

from transformers import DynamicCache


def fork(cache: DynamicCache, *, length: int | None = None) -> DynamicCache:
    """Return a cache that goes on by itself from what another one holds.

    Args:
        cache: Stays as it is, whatever becomes of the fork.
        length: The first positions, which the fork holds; None for all of them.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    if length is not None:
        for layer in forked.layers:
            layer.keys = layer.keys[:, :, :length]
            layer.values = layer.values[:, :, :length]
    return forked

"""Forks of a KV cache: a second way to go on from what was read, at the cost of a few pointers.

Cache layers grow by concatenation, which makes new tensors, so a fork shares what was read before
and changes nothing of it.
"""

import copy

import torch
from torch import Tensor
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


def keep_one(cache: DynamicCache, *, length: int, index: int) -> DynamicCache:
    """Return a cache of the first positions and of one of the tokens that were tried after them.

    Args:
        cache: Of `length` positions and a column a token; it stays as it is.
        length: Of what came before the tokens.
        index: Which of them is kept.
    """
    kept = fork(cache)
    for layer in kept.layers:
        layer.keys = _picked(layer.keys, length, index)
        layer.values = _picked(layer.values, length, index)
    return kept


def _picked(tensor: Tensor, length: int, index: int) -> Tensor:
    """Return the first columns of keys or values [row, head, column, d_head], and one after."""
    return torch.cat([tensor[:, :, :length], tensor[:, :, length + index : length + index + 1]], 2)

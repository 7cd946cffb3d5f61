"""Forks of a KV cache: a second way to go on from what was read, at the cost of a few pointers.

Cache layers grow by concatenation, which makes new tensors, so a fork shares what was read before
and changes nothing of it.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
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


def side_by_side(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Return one cache of several sequences, right-aligned; they stay as they are.

    Args:
        caches: Of one sequence each.
    """
    joint = fork(caches[0])
    if len(caches) == 1:
        return joint
    width = max(cache.get_seq_length() for cache in caches)
    for number, layer in enumerate(joint.layers):
        of_rows = [cache.layers[number] for cache in caches]
        layer.keys = torch.cat([widened(of.keys, width) for of in of_rows])
        layer.values = torch.cat([widened(of.values, width) for of in of_rows])
    return joint


def widened(tensor: Tensor, width: int) -> Tensor:
    """Pad keys or values [row, head, column, d_head] on the left to a width."""
    return pad(tensor, (0, 0, width - tensor.shape[2], 0))


def keep_one(
    cache: DynamicCache, *, row: int = 0, length: int, num_tried: int, index: int
) -> DynamicCache:
    """Return a cache of one sequence and of one of the tokens that were tried after it.

    Args:
        cache: Of sequences, right-aligned, and a column a token that was tried; it stays as it is.
        row: Of the sequence.
        length: Of the sequence before these tokens.
        num_tried: How many tokens there are.
        index: Which of them is kept.
    """
    kept = fork(cache)
    for layer in kept.layers:
        layer.keys = _picked(layer.keys, row, length, num_tried, index)
        layer.values = _picked(layer.values, row, length, num_tried, index)
    return kept


def _picked(tensor: Tensor, row: int, length: int, num_tried: int, index: int) -> Tensor:
    """Return columns of keys or values [row, head, column, d_head]: before, and one of the tried.

    Always a copy, so that nothing keeps the others' alive.
    """
    of_row = tensor[row : row + 1]
    first = tensor.shape[2] - num_tried
    return torch.cat(
        [of_row[:, :, first - length : first], of_row[:, :, first + index : first + index + 1]], 2
    )

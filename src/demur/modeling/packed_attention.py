"""Causal attention over a pack of prompts, in the form that transformers' attention takes.

Each run of equally long prompts is one batched product of queries and keys, with the keys of the
shared prefix before its own. Query heads that share a key head are folded into its rows, so that no
key is repeated. Nothing here knows a model: transformers calls a registered function in each block.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from demur.core.errors import CapabilityError
from demur.modeling.packing import Run

NAME = "demur_packed"
QUERIES_A_BLOCK = 128
SCORES_A_BLOCK = 1 << 20
"""What one step computes at most, over all heads: scores stay in the cache, and of a long prompt
little is computed that later tokens hide. On a CPU this is twice as fast as the fused kernel."""

KeysValues = tuple[Tensor, Tensor]
"""Of one block, each [1, key head, token, d_head]."""


class KeysHeldError(Exception):
    """Leaves a block of which only keys and values were wanted."""


class PackedAttention:
    """The attention of one pass over a pack.

    Args:
        runs: Of the pack.
        prefix: Keys and values of the shared prefix by attention module; empty without one.
        keeps: Keep the keys and values of each block.
    """

    def __init__(
        self, runs: Sequence[Run], prefix: Mapping[nn.Module, KeysValues], *, keeps: bool = False
    ) -> None:
        self.runs = tuple(runs)
        self.num_calls = 0
        self.kept: dict[nn.Module, KeysValues] = {}
        self._prefix = prefix
        self._keeps = keeps
        self._holds = False
        self._held: KeysValues | None = None
        self._masks: dict[tuple[object, ...], Tensor | None] = {}

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Leave the block that runs inside once its keys and values are known, and hold them.

        Raises:
            CapabilityError: The block does not ask for attention.
        """
        self._holds = True
        try:
            yield
        except KeysHeldError:
            return
        finally:
            self._holds = False
        raise CapabilityError("a block does not use transformers' attention")

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        **_others: object,
    ) -> tuple[Tensor, None]:
        """Attend within each prompt.

        Args:
            module: Whose keys and values these are.
            query: [1, head, query, d_head].
            key: [1, key head, token, d_head].
            value: [1, key head, token, d_value].
            attention_mask: None.
            scaling: Of the scores; None is one over the root of d_head.
            softcap: The largest absolute score; None is without limit.

        Returns:
            What each query gathers, [1, query, head, d_value], and no weights.

        Raises:
            CapabilityError: The model brings a mask of its own.
            KeysHeldError: Within `holding`.
        """
        if attention_mask is not None:
            raise CapabilityError("the model brings an attention mask of its own")
        self.num_calls += 1
        if self._holds:
            self._held = (key, value)
            raise KeysHeldError
        if self._held is not None:
            key, value = self._held
        if self._keeps:
            self.kept[module] = (key, value)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        gathered = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
        before, scores = self._prefix.get(module), _Scores(scale, softcap)
        for run in self.runs:
            if run.queries:
                keys, values = (
                    _of_run(run, own[0], None if before is None else before[index])
                    for index, own in enumerate((key, value))
                )
                self._attend(run, query[0], keys, values, scores=scores, out=gathered)
        return gathered[None], None

    def _attend(
        self,
        run: Run,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scores: "_Scores",
        out: Tensor,
    ) -> None:
        """Write what a run's queries gather into their rows of `out` [query, head, d_value]."""
        rows = slice(run.first_query, run.first_query + run.num_prompts * len(run.queries))
        by_prompt, by_key_head = (run.num_prompts, -1), (keys.shape[1], -1)
        asked = torch.unflatten(torch.unflatten(query[:, rows], 1, by_prompt), 0, by_key_head)
        asked = asked.permute(2, 0, 1, 3, 4)  # [prompt, key head, share, query, d_head]
        places = torch.unflatten(torch.unflatten(out[rows], 0, by_prompt), 2, by_key_head)
        places = places.permute(0, 2, 3, 1, 4)
        before = keys.shape[2] - run.length
        for prompts, queries in _blocks(run, num_heads=len(query), num_keys=keys.shape[2]):
            num_keys = before + run.queries[queries.stop - 1] + 1
            few = asked[prompts, :, :, queries]
            found = scores.gather(
                few.flatten(2, 3),
                keys[prompts, :, :num_keys],
                values[prompts, :, :num_keys],
                self._mask(tuple(run.queries[queries]), before, num_keys, few.shape[2], like=few),
            )
            places[prompts, :, :, queries] = torch.unflatten(found, 2, few.shape[2:4])

    def _mask(
        self, queries: tuple[int, ...], before: int, num_keys: int, shares: int, *, like: Tensor
    ) -> Tensor | None:
        """Return what hides later tokens, [share and query, key]; None if there is none to hide."""
        shape = (queries, before, num_keys, shares)
        if shape not in self._masks:
            asked = torch.tensor(queries, device=like.device) + before
            hidden = torch.arange(num_keys, device=like.device) > asked[:, None]
            mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
            self._masks[shape] = mask.repeat(shares, 1) if hidden.any() else None
        return self._masks[shape]


@dataclass(frozen=True)
class _Scores:
    """How a model turns queries and keys into weights."""

    scale: float
    softcap: float | None

    def gather(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return what queries [prompt, key head, query, d_head] gather of values."""
        shape = query.shape[:2]
        query, keys, values = (tensor.flatten(0, 1) for tensor in (query, keys, values))
        added = query.new_zeros(1, 1) if mask is None else mask
        if self.softcap is None:
            added = added.expand(len(query), query.shape[1], keys.shape[1])
            scores = torch.baddbmm(added, query, keys.transpose(1, 2), alpha=self.scale)
        else:
            scores = torch.bmm(query, keys.transpose(1, 2)) * (self.scale / self.softcap)
            scores = torch.tanh(scores) * self.softcap + added
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        return torch.unflatten(torch.bmm(weights, values), 0, shape)


def _of_run(run: Run, own: Tensor, of_prefix: Tensor | None) -> Tensor:
    """Return a run's keys or values, [prompt, key head, token, d_head], the prefix's first."""
    stop = run.first_token + run.num_prompts * run.length
    of_run = torch.unflatten(own[:, run.first_token : stop], 1, (run.num_prompts, run.length))
    of_run = of_run.transpose(0, 1)
    if of_prefix is None:
        return of_run
    return torch.cat((of_prefix.expand(run.num_prompts, -1, -1, -1), of_run), dim=2)


def _blocks(run: Run, *, num_heads: int, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Split a run into blocks of prompts and queries whose scores stay in the cache."""
    num_queries = min(len(run.queries), QUERIES_A_BLOCK)
    num_prompts = max(1, SCORES_A_BLOCK // (num_heads * num_queries * num_keys))
    for first in range(0, run.num_prompts, num_prompts):
        prompts = slice(first, min(first + num_prompts, run.num_prompts))
        for start in range(0, len(run.queries), num_queries):
            yield prompts, slice(start, min(start + num_queries, len(run.queries)))


@contextmanager
def attending(body: nn.Module, attention: PackedAttention) -> Iterator[None]:
    """Let a model use another attention inside the block; its own is always restored.

    Nothing else may run the model meanwhile: it would attend in this way too.
    """
    name = f"{NAME}_{id(attention)}"
    configs: dict[int, Any] = {
        id(m.config): m.config for m in body.modules() if hasattr(m, "config")
    }
    before = [(config, config._attn_implementation) for config in configs.values()]
    ALL_ATTENTION_FUNCTIONS[name] = attention
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own
        del ALL_ATTENTION_FUNCTIONS[name]

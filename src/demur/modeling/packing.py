"""Lays out many prompts in one row of tokens, without padding.

A pack holds the tokens of its prompts one after another, less a prefix that all of them share.
Neighbours of equal length, of which the same tokens ask, form a run, so that attention can treat a
run as one batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import torch
from torch import Tensor

from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.modeling.capture import positions_of

ROWS_A_STEP = 128
"""Packs are filled up to a multiple of this: for each new number of rows a CPU compiles its matrix
products anew, which takes as long as some hundred rows."""


@dataclass(frozen=True)
class Run:
    """Neighbouring prompts of a pack with equally many tokens and the same queries."""

    first_token: int
    """Row of the run's first token in the pack."""
    first_query: int
    """Row of its first query among all queries."""
    num_prompts: int
    length: int
    """Tokens of each prompt, the prefix left out."""
    queries: tuple[int, ...] | range
    """Which of a prompt's tokens ask, counted from its first one after the prefix."""


@dataclass(frozen=True)
class Pack:
    """Prompts in one row of tokens."""

    prompts: tuple[Prompt, ...]
    prefix_length: int
    """Tokens at the start of each prompt that the pack leaves out."""

    @property
    def lengths(self) -> list[int]:
        """The tokens of each prompt that stand in the pack."""
        return [len(prompt) - self.prefix_length for prompt in self.prompts]

    @property
    def starts(self) -> list[int]:
        """For each prompt the row that its very first token would have: negative in the prefix."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        return [end - len(prompt) for end, prompt in zip(ends, self.prompts, strict=True)]

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return the token ids and positions, both [1, token]."""
        ids = [token for prompt in self.prompts for token in prompt.token_ids[self.prefix_length :]]
        positions = [p for prompt in self.prompts for p in range(self.prefix_length, len(prompt))]
        filler = -len(ids) % ROWS_A_STEP
        ids += ids[:1] * filler
        positions += positions[:1] * filler
        return {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.tensor([positions], device=device),
        }

    def runs(self, rows: Sequence[int] | None = None) -> tuple[Run, ...]:
        """Return the runs, if all tokens ask or only some rows of the pack, in ascending order."""
        asked: list[tuple[int, tuple[int, ...] | range]] = []
        wanted, first = iter(rows or ()), 0
        row = next(wanted, None)
        for length in self.lengths:
            queries: list[int] = []
            while row is not None and row < first + length:
                queries.append(row - first)
                row = next(wanted, None)
            asked.append((length, range(length) if rows is None else tuple(queries)))
            first += length
        return tuple(_runs(asked))


def _runs(asked: Iterable[tuple[int, tuple[int, ...] | range]]) -> Iterator[Run]:
    token = query = 0
    for (length, queries), members in groupby(asked):
        run = Run(token, query, len(list(members)), length, queries)
        yield run
        token += run.num_prompts * length
        query += run.num_prompts * len(queries)


def shared_prefix(prompts: Sequence[Prompt], reads: Sequence[CaptureSpec]) -> tuple[int, ...]:
    """Return the tokens with which all prompts begin, up to the first that a read wants."""
    first, last = min(p.token_ids for p in prompts), max(p.token_ids for p in prompts)
    alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    unread = min(min(positions_of(prompt, spec)) for prompt in prompts for spec in reads)
    return first[: min(alike, unread)]


def batches(lengths: Sequence[int], *, budget: int, is_padded: bool) -> Iterator[range]:
    """Split prompts, in order, into batches under a token budget.

    Args:
        lengths: Tokens of each prompt.
        budget: Most tokens a batch; a longer prompt is a batch of its own.
        is_padded: Each prompt takes as many tokens as the longest of its batch.
    """
    start = tokens = widest = 0
    for stop, length in enumerate(lengths):
        widest = max(widest, length)
        tokens = widest * (stop + 1 - start) if is_padded else tokens + length
        if stop > start and tokens > budget:
            yield range(start, stop)
            start, tokens, widest = stop, length, length
    if start < len(lengths):
        yield range(start, len(lengths))

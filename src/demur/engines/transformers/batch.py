"""The running batch: rows of different length that decode in one forward pass.

Each row's keys and values lie right-aligned in a shared cache, with padding on the left that the
attention mask hides. A row that runs alone has no padding, and computes exactly what a plain
generation loop would.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.protocols import Done, Request
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.engines._text import TextStream
from demur.engines.transformers.passes import UNCHANGED, Changes, Passes
from demur.engines.transformers.reranking import Lookahead
from demur.engines.transformers.sampling import row_generator
from demur.engines.transformers.starting import Start
from demur.modeling.caches import fork, widened
from demur.modeling.capture import Slot


@dataclass
class Row:
    """A request that is being answered."""

    request: Request
    text: TextStream
    length: int
    """Tokens that the model has read so far."""
    changes: Changes = UNCHANGED
    """To each of its passes."""
    prompt_ids: tuple[int, ...] | None = None
    """As of the `Start` that it began from."""
    drawn_ids: list[int] = field(default_factory=list)
    """Its reply; the last one may not be read yet."""
    restart: Start | None = None
    """From where it goes on, since its monitor said so."""
    end: Done | None = None
    """What is said once the monitor has seen the last token, which is drawn already."""
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Give the row its own generator."""
        self.generator = row_generator(
            self.request.sampling, self.request.draw_id or self.request.id
        )

    @property
    def num_drawn(self) -> int:
        """Tokens of its reply."""
        return len(self.drawn_ids)


@dataclass
class RerankedRow(Row):
    """A row whose tokens are tried before one is taken, with a cache of its own."""

    lookahead: Lookahead = field(kw_only=True)

    @property
    def also(self) -> tuple[CaptureSpec, ...]:
        """What its monitor, if it has one, wants of each token."""
        monitor = self.request.monitor
        return () if monitor is None else (monitor.read,)


class Batch:
    """Rows and their shared cache, right-aligned; beside them rows that are reranked."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.reranked: list[RerankedRow] = []
        self._cache: DynamicCache | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows) + len(self.reranked)

    @property
    def cache(self) -> DynamicCache:
        """The keys and values of all rows."""
        assert self._cache is not None, "a batch without rows has no cache"
        return self._cache

    def join(self, row: Row, cache: DynamicCache) -> None:
        """Add a row with the cache of its prefill; the row's own tensors are not changed."""
        if self._cache is None:
            self._cache = cache
        else:
            width = max(self.cache.get_seq_length(), cache.get_seq_length())
            for ours, theirs in zip(self.cache.layers, cache.layers, strict=True):
                ours.keys = torch.cat([widened(ours.keys, width), widened(theirs.keys, width)])
                ours.values = torch.cat(
                    [widened(ours.values, width), widened(theirs.values, width)]
                )
        self.rows.append(row)

    def cache_of(self, index: int) -> DynamicCache:
        """Return the keys and values of one row, without padding; the batch is not changed."""
        of_row, length = fork(self.cache), self.rows[index].length
        for layer in of_row.layers:
            layer.keys = layer.keys[index : index + 1, :, -length:]
            layer.values = layer.values[index : index + 1, :, -length:]
        return of_row

    def keep(self, indices: Sequence[int]) -> None:
        """Let all other rows leave, and drop the padding that nobody needs any more."""
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in indices]
        if not self.rows:
            self._cache = None
            return
        width = max(row.length for row in self.rows)
        for layer in self.cache.layers:
            picked = torch.tensor(indices, device=layer.keys.device)
            layer.keys = layer.keys[picked, :, -width:]
            layer.values = layer.values[picked, :, -width:]

    def dismiss_abandoned(self) -> list[Done]:
        """Let rows leave that nobody waits for; return what to say of them."""
        every = [*self.rows, *self.reranked]
        gone = {id(row) for row in every if row.request.is_abandoned()}
        self.keep([index for index, row in enumerate(self.rows) if id(row) not in gone])
        self.reranked = [row for row in self.reranked if id(row) not in gone]
        return [Done(row.request.id, "abandoned") for row in every if id(row) in gone]

    def forward(self, passes: Passes, device: torch.device) -> tuple[Tensor, dict[int, Array]]:
        """Read each row's next token.

        Args:
            passes: Of the model.
            device: That it lies on.

        Returns:
            The logits [row, vocabulary], and the states [layer, d_model] that monitors want, by
            row.
        """
        slots = self._slots()
        logits = passes.step(
            self._inputs(device),
            [row.changes for row in self.rows],
            {spec: slot for spec, (_, slot) in slots.items()},
        )
        states = {
            row: of[:, 0]
            for rows, slot in slots.values()
            for row, of in zip(rows, slot.values(), strict=True)
        }
        return logits, states

    def _slots(self) -> dict[CaptureSpec, tuple[list[int], Slot]]:
        """Return for each read of a monitor its rows, and where their states go in the next step.

        A step has one token a row.
        """
        rows: dict[CaptureSpec, list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.request.monitor is not None:
                rows.setdefault(row.request.monitor.read, []).append(index)
        return {spec: (of, Slot(spec, [[row] for row in of])) for spec, of in rows.items()}

    def _inputs(self, device: torch.device) -> dict[str, Tensor | DynamicCache | None]:
        """Return the model's inputs for the next step: one new token a row."""
        width = self.cache.get_seq_length() + 1
        tokens = torch.tensor([[row.drawn_ids[-1]] for row in self.rows], device=device)
        positions = torch.tensor([[row.length] for row in self.rows], device=device)
        lengths = positions + 1
        columns = torch.arange(width, device=device)
        mask = (columns >= width - lengths).long() if int(lengths.min()) < width else None
        return {
            "input_ids": tokens,  # [row, 1]
            "attention_mask": mask,  # [row, width]
            "position_ids": positions,
            "past_key_values": self.cache,
        }

"""Captures the readings of many prompts into shards on disk, in length-sorted batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.core.errors import DataError
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.core.types import Chat, Prompt
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.modeling.gguf import cache_folder
from demur.modeling.load import LoadedModel
from demur.workflows.readings_store import ReadingsFolder, open_folder

TOKENS_A_BATCH = 1024
"""A batch's tokens, padding included: more does not pay on a CPU."""


@dataclass(frozen=True)
class Progress:
    """How far a capture has come; prompts found on disk count as done."""

    prompts_done: int
    num_prompts: int
    tokens_done: int
    num_tokens: int
    prompts_a_second: float
    tokens_a_second: float

    @property
    def rates(self) -> str:
        """The speed so far, in words."""
        return f"{self.prompts_a_second:.1f} prompts/s, {self.tokens_a_second:.0f} tokens/s"


Report = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Report nothing."""


class Capturer:
    """Reads prompts with one model, from disk where they were read before.

    Args:
        loaded: The model.
        root: Where readings are kept; None is the user's cache.
    """

    def __init__(self, loaded: LoadedModel, *, root: Path | None = None) -> None:
        self._loaded = loaded
        self._renderer = ChatRenderer(loaded.tokenizer, name=loaded.model_id.name)
        self._max_tokens = loaded.max_tokens
        self._root = root or cache_folder() / "readings"

    def capture(
        self, chats: Sequence[Chat], reads: Sequence[Read], *, report: Report = ignore_progress
    ) -> ReadingsFolder:
        """Capture chats into a folder; interrupted, it goes on at the next call.

        Args:
            chats: What to read.
            reads: Pooled captures.
            report: Called after each shard.

        Raises:
            DataError: A chat cannot be rendered or is longer than the context.
        """
        prompts = [self._render(number, chat) for number, chat in enumerate(chats)]
        folder = open_folder(self._root, self._loaded.model_id, reads, prompts)
        for progress in self._fill(folder, prompts):
            report(progress)
        return folder

    def _fill(self, folder: ReadingsFolder, prompts: Sequence[Prompt]) -> Iterator[Progress]:
        missing = folder.missing()
        todo = {row for shard in missing for row in folder.plan.rows[shard]}
        num_tokens = sum(len(prompt) for prompt in prompts)
        tokens_before = sum(len(p) for row, p in enumerate(prompts) if row not in todo)
        prompts_done, tokens_done = len(prompts) - len(todo), tokens_before
        started = time.perf_counter()
        for shard in missing:
            batch = [prompts[row] for row in folder.plan.rows[shard]]
            folder.write(shard, _in_batches(self._loaded, batch, folder.reads))
            prompts_done += len(batch)
            tokens_done += sum(len(prompt) for prompt in batch)
            seconds = time.perf_counter() - started
            yield Progress(
                prompts_done,
                len(prompts),
                tokens_done,
                num_tokens,
                (prompts_done - len(prompts) + len(todo)) / seconds,
                (tokens_done - tokens_before) / seconds,
            )

    def _render(self, number: int, chat: Chat) -> Prompt:
        prompt = self._renderer.render(chat)
        if len(prompt) >= self._max_tokens:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens: the model takes fewer than "
                f"{self._max_tokens}; leave it out or shorten it"
            )
        return prompt


def _in_batches(loaded: LoadedModel, prompts: Sequence[Prompt], reads: Sequence[Read]) -> Readings:
    return Readings.concatenate(
        [capture(loaded.parts, batch, reads) for batch in batches(prompts, TOKENS_A_BATCH)]
    )


def batches(prompts: Sequence[Prompt], tokens_a_batch: int) -> Iterator[list[Prompt]]:
    """Split prompts, in order, into batches whose padded size stays under a token budget.

    A prompt over the budget is a batch of its own.
    """
    batch: list[Prompt] = []
    for prompt in prompts:
        width = max(len(prompt), max((len(p) for p in batch), default=0))
        if batch and width * (len(batch) + 1) > tokens_a_batch:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch

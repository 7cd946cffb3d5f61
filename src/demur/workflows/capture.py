"""Captures the readings of many prompts into shards on disk, in length-sorted batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.core.errors import DataError
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.core.types import Chat, ModelId, Prompt
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.modeling.gguf import cache_folder
from demur.modeling.load import LoadedModel
from demur.workflows.readings_store import open_folder

TOKENS_A_BATCH = 1024
"""A batch's tokens, padding included: more does not pay on a CPU."""


@dataclass(frozen=True)
class Progress:
    """How far a capture has come; prompts found on disk count as done."""

    prompts_done: int
    num_prompts: int
    tokens_done: int
    num_tokens: int


Report = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Report nothing."""


class Capturer:
    """Reads prompts with one model, from disk where they were read before.

    The model is loaded only when a shard is missing.

    Args:
        load: Loads the model.
        renderer: Renders chats with the model's template.
        model_id: Of the model that `load` gives.
        max_tokens: The model's context.
        root: Where readings are kept; None is the user's cache.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        renderer: ChatRenderer,
        model_id: ModelId,
        max_tokens: int,
        root: Path | None = None,
    ) -> None:
        self._load = load
        self._renderer = renderer
        self._model_id = model_id
        self._max_tokens = max_tokens
        self._root = root or cache_folder() / "readings"

    def readings(
        self, chats: Sequence[Chat], reads: Sequence[Read], *, report: Report = ignore_progress
    ) -> Readings:
        """Return the readings of chats, in order; interrupted, it goes on at the next call.

        Args:
            chats: What to read.
            reads: Pooled captures.
            report: Called after each shard.

        Raises:
            DataError: A chat cannot be rendered or is longer than the context.
        """
        prompts = [self._render(number, chat) for number, chat in enumerate(chats)]
        folder = open_folder(self._root, self._model_id, reads, prompts)
        missing = folder.missing()
        todo = {row for shard in missing for row in folder.plan.rows[shard]}
        num_tokens = sum(len(prompt) for prompt in prompts)
        tokens_done = sum(len(p) for row, p in enumerate(prompts) if row not in todo)
        prompts_done = len(prompts) - len(todo)
        for shard in missing:
            rows = [prompts[row] for row in folder.plan.rows[shard]]
            folder.write(shard, _in_batches(self._load(), rows, reads))
            prompts_done += len(rows)
            tokens_done += sum(len(prompt) for prompt in rows)
            report(Progress(prompts_done, len(prompts), tokens_done, num_tokens))
        return folder.load()

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

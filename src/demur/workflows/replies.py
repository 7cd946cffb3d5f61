"""The replies that a reply detector learns from: labelled ones, and ordinary ones of the model.

A row counts by its `response` and `response_label`. Labelled replies are mostly answers to unsafe
prompts; what most replies look like a detector learns from the model's own to benign prompts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.protocols import Engine
from demur.core.types import Sampling
from demur.guard.kept_replies import (
    KeptReplies,
    Report,
    digest_of,
    ignore_progress,
    key_of,
    unguarded,
)
from demur.modeling.gguf import cache_folder


def labelled_replies(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that have a labelled reply, each with the reply's label as its own.

    Replies to one prompt are a group, where no group is given.

    Raises:
        DataError: A labelled reply is empty.
    """
    labelled = [e for e in examples if e.response is not None and e.response_label is not None]
    empty = [example.id for example in labelled if not str(example.response).strip()]
    if empty:
        raise DataError(
            f"{len(empty)} labelled replies are empty (the first is that of {empty[0]!r}): leave "
            "them out"
        )
    return [_of_its_prompt(replace(e, label=e.response_label)) for e in labelled]


def to_be_answered(examples: Sequence[Example]) -> list[Example]:
    """Return benign prompts as safe replies that are still to be written: see `OwnReplies`.

    Raises:
        DataError: A prompt is labelled unsafe.
    """
    unsafe = [example.id for example in examples if example.label == "unsafe"]
    if unsafe:
        raise DataError(
            f"{len(unsafe)} prompts are labelled unsafe (the first is {unsafe[0]!r}): the model's "
            "own replies count as safe, so give benign prompts only"
        )
    fields = {"label": "safe", "response": None, "response_label": "safe"}
    return [_of_its_prompt(replace(example, **fields)) for example in examples]  # type: ignore[arg-type]


def _of_its_prompt(example: Example) -> Example:
    return example if example.group is not None else replace(example, group=key_of(example.chat))


@dataclass(frozen=True)
class OwnReplies:
    """Lets a model answer prompts without a guard, and keeps the answers on disk.

    There is one file a model and way of sampling.

    Args:
        engine: Runs the model; several prompts are answered side by side.
        sampling: How the replies are drawn; the seed counts together with a prompt.
        root: Where they are kept; None is the user's cache.
    """

    engine: Engine
    sampling: Sampling
    root: Path | None = None

    def fill_in(
        self, examples: Sequence[Example], *, report: Report = ignore_progress
    ) -> list[Example]:
        """Return the examples with replies where there are none; empty replies are left out.

        Args:
            examples: Those without a `response` are answered.
            report: Called after each reply.

        Raises:
            DataError: A prompt could not be answered.
        """
        asked = [example.chat for example in examples if example.response is None]
        kept = KeptReplies(self.path, unguarded(self.engine, self.sampling))
        replies = iter(kept.of(asked, report=report))
        filled = [
            e if e.response is not None else replace(e, response=next(replies).text)
            for e in examples
        ]
        return [example for example in filled if str(example.response).strip()]

    @property
    def path(self) -> Path:
        """The file of this model and way of sampling."""
        depends_on = {"model": self.engine.model_id.as_dict(), "sampling": asdict(self.sampling)}
        return (self.root or cache_folder() / "own_replies") / f"{digest_of(depends_on)}.jsonl"

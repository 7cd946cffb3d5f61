"""The replies that a reply detector learns from: labelled ones, and ordinary ones of the model.

A row counts by its `response` and `response_label`. Labelled replies are mostly answers to unsafe
prompts; what most replies look like a detector learns from the model's own to benign prompts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.protocols import Engine
from demur.core.types import Chat, Sampling
from demur.guard.exchange import plain_replies
from demur.modeling.gguf import cache_folder

Report = Callable[[int, int], None]
"""Takes how many replies there are, and how many there will be."""


def ignore_progress(num_done: int, num_replies: int) -> None:
    """Report nothing."""


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
    return example if example.group is not None else replace(example, group=_key(example.chat))


def _key(chat: Chat) -> str:
    return chat.sha256[:20]


@dataclass(frozen=True)
class OwnReplies:
    """Lets a model answer prompts without a guard, and keeps the answers on disk.

    There is one file a model and way of sampling, with a line a prompt, which it names by a hash.
    Lines are appended as replies come, so an interrupted run goes on where it stopped.

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
        asked = {_key(e.chat): e for e in examples if e.response is None}
        known = _known(self.path) if asked else {}
        missing = {key: example for key, example in asked.items() if key not in known}
        if missing:
            known.update(self._answer(missing, report))
        filled = [
            e if e.response is not None else replace(e, response=known[_key(e.chat)])
            for e in examples
        ]
        return [example for example in filled if str(example.response).strip()]

    @property
    def path(self) -> Path:
        """The file of this model and way of sampling."""
        depends_on = {"model": self.engine.model_id.as_dict(), "sampling": asdict(self.sampling)}
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return (self.root or cache_folder() / "own_replies") / f"{digest[:20]}.jsonl"

    def _answer(self, asked: Mapping[str, Example], report: Report) -> dict[str, str]:
        """Answer prompts by key, and append each reply to the file."""
        chats = [example.chat for example in asked.values()]
        replies = plain_replies(self.engine, chats, self.sampling, request_ids=asked)
        texts: dict[str, str] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for (key, example), reply in zip(asked.items(), replies, strict=True):
                if reply.error is not None:
                    raise DataError(f"prompt {example.id!r} could not be answered: {reply.error}")
                texts[key] = reply.text
                # A line of its own, also after one that was cut off.
                file.write(f"\n{json.dumps({'prompt': key, 'response': reply.text})}\n")
                file.flush()
                report(len(texts), len(asked))
        return texts


def _known(path: Path) -> dict[str, str]:
    """Return the replies in a file by prompt; a line that was cut off does not count."""
    known: dict[str, str] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            known[str(row["prompt"])] = str(row["response"])
        except (ValueError, KeyError, TypeError):
            continue
    return known

"""Replies that are kept on disk, so that no prompt is answered twice in the same way.

There is one file a way of answering, with a line a prompt, which it names by a hash. Lines are
appended as replies come, so an interrupted run goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.core.errors import DataError
from demur.core.protocols import Engine
from demur.core.results import Reply
from demur.core.types import Chat, Sampling
from demur.guard.exchange import plain_replies

Report = Callable[[int, int], None]
"""Takes how many replies there are, and how many there will be."""
Answer = Callable[[Sequence[Chat], Sequence[str]], Iterator[Reply]]
"""Answers chats in order; takes an id for each."""


def unguarded(engine: Engine, sampling: Sampling) -> Answer:
    """Return what answers chats by a model alone."""

    def answer(chats: Sequence[Chat], ids: Sequence[str]) -> Iterator[Reply]:
        return plain_replies(engine, chats, sampling, request_ids=ids)

    return answer


def ignore_progress(num_done: int, num_replies: int) -> None:
    """Report nothing."""


def key_of(chat: Chat) -> str:
    """Return the hash by which files name a chat."""
    return chat.sha256[:20]


def digest_of(depends_on: Mapping[str, object]) -> str:
    """Return a short name for a way of answering."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class KeptReply:
    """A reply as it lies on disk."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeptReplies:
    """The replies of one way of answering.

    Args:
        path: The file.
        answer: Answers what is not there yet.
    """

    path: Path
    answer: Answer

    def of(self, chats: Sequence[Chat], *, report: Report = ignore_progress) -> list[KeptReply]:
        """Return the reply to each chat, from disk where it was given before.

        Args:
            chats: May stand there twice.
            report: Called after each reply that is new.

        Raises:
            DataError: A chat could not be answered.
        """
        keys = [key_of(chat) for chat in chats]
        known = self._known() if chats else {}
        missing = {key: c for key, c in zip(keys, chats, strict=True) if key not in known}
        if missing:
            known.update(self._answered(missing, report))
        return [known[key] for key in keys]

    def _answered(self, asked: Mapping[str, Chat], report: Report) -> dict[str, KeptReply]:
        """Answer chats by key, and append each reply to the file."""
        found: dict[str, KeptReply] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replies = self.answer(list(asked.values()), list(asked))
        with self.path.open("a", encoding="utf-8") as file:
            for key, reply in zip(asked, replies, strict=True):
                if reply.error is not None:
                    raise DataError(f"a prompt could not be answered: {reply.error}")
                found[key] = KeptReply(reply.text, reply.token_ids)
                line = {"prompt": key, "response": reply.text, "token_ids": reply.token_ids}
                # A line of its own, also after one that was cut off.
                file.write(f"\n{json.dumps(line)}\n")
                file.flush()
                report(len(found), len(asked))
        return found

    def _known(self) -> dict[str, KeptReply]:
        """Return the replies in the file by prompt; a line that was cut off does not count."""
        known: dict[str, KeptReply] = {}
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
                reply = KeptReply(str(row["response"]), tuple(row.get("token_ids", ())))
                known[str(row["prompt"])] = reply
            except (ValueError, KeyError, TypeError):
                continue
        return known

"""Checks prompts and answers them: one output row for each input row, in order.

A row that cannot be scored becomes a row with `error` that counts as flagged; the others go on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from demur.core.protocols import Engine
from demur.core.results import ERROR, Reply, Verdict
from demur.core.types import Sampling
from demur.datasets.rows import Row
from demur.guard import Guard
from demur.guard.exchange import plain_replies

OutputRow = dict[str, Any]


def check_rows(guard: Guard, rows: Iterable[Row]) -> Iterator[OutputRow]:
    """Score prompts one by one: a score never depends on a prompt's neighbours."""
    for row in rows:
        if row.example is None:
            yield {"id": row.id, **_unscored(guard, row.error)}
        else:
            yield {"id": row.id, **verdict_fields(guard.check(row.example.chat))}


def reply_rows(
    guard: Guard | Engine, rows: Iterable[Row], sampling: Sampling, *, batch: int = 1
) -> Iterator[OutputRow]:
    """Answer prompts under a guard, or by the bare engine.

    Args:
        guard: An engine answers unguarded, with score fields that are null.
        rows: What to answer.
        sampling: The seed counts together with each row's id.
        batch: Prompts that are answered side by side. 1 gives the tokens of a plain generation
            loop bit by bit; more is faster, and rounds differently.
    """
    for chunk in _chunks(rows, batch):
        asked = [row for row in chunk if row.example is not None]
        chats = [row.example.chat for row in asked if row.example is not None]
        ids = [row.id for row in asked]
        if isinstance(guard, Guard):
            replies = iter(guard.replies(chats, sampling, request_ids=ids))
        else:
            replies = iter(plain_replies(guard, chats, sampling, request_ids=ids))
        for row in chunk:
            if row.example is None:
                yield {"id": row.id, **_unscored(guard, row.error), **_reply_fields(None)}
            else:
                reply = next(replies)
                yield {"id": row.id, **_verdicts_of(reply), **_reply_fields(reply)}


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def verdict_fields(verdicts: Sequence[Verdict]) -> OutputRow:
    """Return the fields of an output row: the first verdict's, and the rest under `verdicts`."""
    first, *rest = [_plain(verdict) for verdict in verdicts]
    return {**first, "verdicts": rest} if rest else first


def _plain(verdict: Verdict) -> OutputRow:
    fields = asdict(verdict)
    if verdict.error is None:
        del fields["error"]
    if verdict.categories is None:
        del fields["categories"]
    return fields


def _verdicts_of(reply: Reply) -> OutputRow:
    return verdict_fields(reply.verdicts) if reply.verdicts else _without_guard(reply.error)


def _unscored(guard: Guard | Engine, error: str | None) -> OutputRow:
    """Return the score fields of a row that holds nothing to score."""
    if not isinstance(guard, Guard):
        return _without_guard(error)
    return verdict_fields([d.unscored(error or "") for d in guard.detectors])


def _without_guard(error: str | None) -> OutputRow:
    """Return score fields that are null; what could not even be read counts as flagged."""
    fields: OutputRow = dict.fromkeys(
        ("detector", "score", "probability", "threshold", "flagged", "has_forged_markers")
    )
    return fields if error is None else {**fields, "flagged": True, "error": error}


def _reply_fields(reply: Reply | None) -> OutputRow:
    if reply is None:
        return {
            "reply": "",
            "token_ids": [],
            "route": ERROR,
            "finish_reason": ERROR,
            "timings": None,
        }
    return {
        "reply": reply.text,
        "token_ids": list(reply.token_ids),
        "route": reply.route,
        "finish_reason": reply.finish_reason,
        "timings": asdict(reply.timings),
    }

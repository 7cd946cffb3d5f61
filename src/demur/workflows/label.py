"""Labels prompts by what a model's own replies to them do: `complied` true or false."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from demur.core.errors import ConfigError
from demur.core.outcomes import Answered, Scorer
from demur.core.protocols import Engine
from demur.core.results import ERROR
from demur.core.types import Sampling
from demur.datasets.rows import Row
from demur.workflows.answering import OutputRow, reply_rows

RENEWED = ("complied", "error")
"""Fields of an input line that are not taken over."""


def require_outcomes(scorer: Scorer) -> None:
    """Refuse a scorer that does not tell whether a reply complied.

    Raises:
        ConfigError: It does not.
    """
    if not scorer.gives_outcomes:
        raise ConfigError(
            f"{type(scorer).__name__} measures something else than the outcome of a reply: "
            "expected a scorer such as agreement or guard_model"
        )


def labelled_rows(
    engine: Engine,
    rows: Iterable[Row],
    objects: Mapping[int, Mapping[str, Any]],
    *,
    scorer: Scorer,
    sampling: Sampling,
    batch: int,
) -> Iterator[OutputRow]:
    """Let a model answer prompts without a guard, and say which replies complied.

    Args:
        engine: Runs the model.
        rows: What to answer.
        objects: The fields of each row's line, by its number; they are taken over.
        scorer: Judges the replies.
        sampling: How replies are drawn.
        batch: Prompts that are answered side by side.

    Yields:
        A line for each row, in order: without `complied` where the scorer cannot tell, with `error`
        where there is no reply.
    """
    asked = list(rows)
    for row, answer in zip(asked, reply_rows(engine, asked, sampling, batch=batch), strict=True):
        given = {k: v for k, v in objects[row.number].items() if k not in RENEWED}
        line: OutputRow = {"id": row.id, **given}
        if row.example is None or answer["route"] == ERROR:
            yield {**line, "error": answer["error"]}
            continue
        (judgement,) = scorer.judge([Answered(row.example.chat, answer["reply"])])
        if judgement.error is not None:
            yield {**line, "error": judgement.error}
        elif judgement.outcome in ("complied", "refused"):
            yield {**line, "complied": judgement.outcome == "complied"}
        else:
            yield line

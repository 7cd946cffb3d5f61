"""Prompts of several sources, whose unsafe ones the fake engine knows, and their readings."""

from collections.abc import Sequence
from functools import cache

from demur.core.examples import Example, Label
from demur.core.protocols import Done, Request, Scored
from demur.core.readings import Readings
from demur.core.reads import Read
from demur.core.types import Chat, Sampling
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine

AnyEngine = FakeEngine | TransformersEngine

NUM_BLOCKS = 3
SOURCES: tuple[tuple[str, Label], ...] = (
    ("attacks", "unsafe"), ("questions", "unsafe"), ("chat", "safe"), ("code", "safe"),
)  # fmt: skip


def examples(source: str, label: Label, number: int, *, start: int = 0) -> list[Example]:
    """Return prompts of a source; unsafe ones hold the marker that the fake engine knows."""
    word = "MARKER" if label == "unsafe" else "nothing"
    return [
        Example(
            f"{source}-{row}", Chat.from_text(f"{source} {row} {word} please"), label, source=source
        )
        for row in range(start, start + number)
    ]


def of_all_sources(number: int, *, start: int) -> list[Example]:
    """Return as many prompts of each source."""
    return [e for source, label in SOURCES for e in examples(source, label, number, start=start)]


@cache
def read_once(engine: AnyEngine, reads: tuple[Read, ...], chat: Chat) -> Readings:
    """Return what an engine reads of a chat, and read it once."""
    seen: list[Readings] = []
    request = Request("0", engine.render(chat), Sampling(max_tokens=0), reads, seen.append)
    assert [type(event) for event in engine.run([request])] == [Scored, Done]
    return seen[0]


def read(engine: AnyEngine, prompts: Sequence[Example], reads: Sequence[Read]) -> Readings:
    """Return what an engine reads of prompts."""
    return Readings.concatenate(
        [read_once(engine, tuple(reads), prompt.chat) for prompt in prompts]
    )

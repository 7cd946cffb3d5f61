"""Requests to any engine, and what its events say of a reply."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from demur.core.interventions import Intervention
from demur.core.protocols import Engine, Event, Request, TokenOut
from demur.core.types import Chat, Sampling

MakeEngine = Callable[[int], Engine]
"""Takes the most rows that decode together; each call makes an engine of the same model."""

TEXTS = ("Tell me a story about two foxes and an owl.", "Why?", "Name five rivers of Europe!")


def events_of(engine: Engine, requests: Sequence[Request]) -> dict[str, list[Event]]:
    """Run requests to their ends, and return the events of each."""
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    for event in engine.run(requests):
        events[event.id].append(event)
    return events


def token_ids(events: Sequence[Event]) -> list[int]:
    """Return the tokens among events."""
    return [event.token_id for event in events if isinstance(event, TokenOut)]


def text_of(events: Sequence[Event]) -> str:
    """Return the text of all tokens among events."""
    return "".join(event.text for event in events if isinstance(event, TokenOut))


def requests_for(engine: Engine, sampling: Sampling, texts: Sequence[str] = TEXTS) -> list[Request]:
    """Return a request a text, numbered from 0."""
    return [
        Request(str(number), engine.render(Chat.from_text(text)), sampling)
        for number, text in enumerate(texts)
    ]


def one(engine: Engine, sampling: Sampling, intervention: Intervention | None = None) -> Request:
    """Return a request for the first text, under an intervention or plain."""
    (request,) = requests_for(engine, sampling, TEXTS[:1])
    return replace(request, decide=lambda readings: intervention)

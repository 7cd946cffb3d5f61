"""What engines do alike for the requests of a batch: say that one failed, and heed its monitor."""

import time
from collections.abc import Callable, Iterator

from demur.core.interventions import EndReply, ReplyWith, UseAdapter
from demur.core.protocols import Done, Event, Request, Switched, Watched
from demur.core.readings import Array


def failed(request: Request, error: Exception) -> Done:
    """Return the end of a request whose step failed; the others go on."""
    return Done(request.id, "error", f"{type(error).__name__}: {error}")


def heed_monitor(
    request: Request,
    states: Array,
    *,
    num_tokens: int,
    end: Done | None,
    replace: Callable[[ReplyWith], Iterator[Event]],
    switch: Callable[[UseAdapter], None],
) -> Iterator[Event]:
    """Show a request's monitor the newest token of its reply, and do as it says.

    Args:
        request: That has a monitor.
        states: Of the token, [layer, d_model], float32.
        num_tokens: Of the reply so far.
        end: What ends the reply unless the monitor intervenes; None lets it go on.
        replace: Yields a text in the reply's place, and the end.
        switch: Puts the rest of the reply under an adapter; a reply that is over has none.
    """
    assert request.monitor is not None, "only watched replies are shown"
    started = time.perf_counter()
    try:
        intervention = request.monitor.watch(states)
        watched = Watched(request.id, num_tokens, time.perf_counter() - started)
        if isinstance(intervention, UseAdapter) and end is None:
            switch(intervention)
    except Exception as error:  # one request's failure is its own
        yield failed(request, error)
        return
    yield watched
    if intervention is not None:
        yield Switched(request.id, intervention)
    if isinstance(intervention, ReplyWith):
        yield from replace(intervention)
    elif isinstance(intervention, EndReply):
        yield Done(request.id, "ended")
    elif end is not None:
        yield end

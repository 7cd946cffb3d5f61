"""Runs the application under uvicorn until it is told to stop."""

import math
from collections.abc import Callable

import uvicorn

from demur.serving.app import create_app
from demur.serving.service import Loaded, load_guard
from demur.serving.settings import Settings

MAX_HEADER_BYTES = 64 * 1024


def run(settings: Settings, *, load: Callable[[Settings], Loaded] = load_guard) -> None:
    """Serve until SIGTERM or SIGINT; replies under way are finished first.

    Args:
        settings: Of the server.
        load: Loads the guard.

    Raises:
        DemurError: The guard could not be loaded.
    """
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, load=load, on_load_failure=stop),
            host=settings.host,
            port=settings.port,
            http="h11",  # which alone limits headers
            log_level="warning",
            timeout_graceful_shutdown=math.ceil(settings.limits.shutdown_timeout_s),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
    )
    server.run()
    if failures:
        raise failures[0]

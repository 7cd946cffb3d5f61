"""What endpoints need to know of the client at the other end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from demur.serving.service import Service

Result = TypeVar("Result")


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def service_of(request: Request) -> Service:
    """Return the service behind a request."""
    service: Service = request.app.state.service
    return service


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work, and cancel it when the client leaves.

    Args:
        request: Whose body has been read.
        work: What the client waits for.

    Raises:
        ClientLeftError: The client left first.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        working.cancel()
        leaving.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

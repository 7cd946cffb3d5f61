"""The connection to an OpenAI-compatible server that answers what the guard lets pass."""

import logging

import httpx

from demur.serving.errors import ApiError
from demur.serving.proxy_headers import Header
from demur.serving.settings import UpstreamSettings

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 4.0
"""Servers drop idle connections after 5 seconds or later; a request on a dropped one is lost."""


class Upstream:
    """One client for all requests.

    Args:
        url: The server's address, up to /v1.
        settings: How long to wait for it.
    """

    def __init__(self, url: str, settings: UpstreamSettings) -> None:
        self._url = url
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            follow_redirects=False,
            trust_env=False,
        )
        self._client.headers.clear()

    async def send(
        self, method: str, path: str, *, headers: list[Header], content: bytes
    ) -> httpx.Response:
        """Send a request and return the reply as soon as its headers are there.

        Raises:
            ApiError: 502 or 504, the upstream cannot be reached; or 502, it names another address,
                to which a client would go without a guard.
        """
        request = self._client.build_request(
            method, self._url + path, headers=headers, content=content or None
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise upstream_error(error) from error
        if response.is_redirect:
            await response.aclose()
            raise ApiError(
                502,
                "the upstream answers with another address: give that one to this server",
                type="server_error",
                code="upstream_redirect",
            )
        return response

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def content_of(response: httpx.Response) -> bytes:
    """Return a reply's body as it came, and close the reply.

    Raises:
        ApiError: 502 or 504, the upstream broke off.
    """
    try:
        return b"".join([piece async for piece in response.aiter_raw()])
    except httpx.TransportError as error:
        raise upstream_error(error) from error
    finally:
        await response.aclose()


def upstream_error(error: httpx.TransportError) -> ApiError:
    """Return the answer to a request that the upstream failed at."""
    log.warning("the upstream failed: %s: %s", type(error).__name__, error)
    if isinstance(error, httpx.TimeoutException):
        return ApiError(
            504, "the upstream did not answer in time", type="server_error", code="timeout"
        )
    return ApiError(
        502,
        "the upstream cannot be reached, or broke off",
        type="server_error",
        code="upstream_unreachable",
    )

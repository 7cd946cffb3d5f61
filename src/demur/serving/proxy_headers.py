"""Which headers go on to an upstream, and which come back from it.

What belongs to one connection stays there (RFC 9110, section 7.6.1), and so do keys that are meant
for this server. What speaks for the guard is never taken from others.
"""

from collections.abc import Iterable, Sequence

Header = tuple[bytes, bytes]
"""Name and value, as on the wire."""

OF_CONNECTIONS = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"cookie"})
SET_ANEW = frozenset(
    {
        b"accept-encoding", b"content-encoding", b"content-length", b"content-type", b"expect",
        b"host",
    }
)  # fmt: skip
"""Of requests: the guard reads the reply, and the body is JSON in UTF-8 whatever a client calls it.
"""
OF_THE_UPSTREAMS_HOST = frozenset(
    {b"alt-svc", b"content-length", b"date", b"server", b"set-cookie", b"strict-transport-security"}
)
"""Of replies: they would speak for this server's address."""
OURS = b"x-demur-"


def request_headers(
    given: Iterable[Header], *, api_key: str | None, passes_credentials: bool
) -> list[Header]:
    """Return the headers of a request to the upstream.

    Args:
        given: By the client.
        api_key: The upstream's; None if there is none.
        passes_credentials: The client's keys are the upstream's.
    """
    drop = OF_CONNECTIONS | SET_ANEW
    if api_key is not None or not passes_credentials:
        drop |= CREDENTIALS
    found = _kept(given, drop)
    if api_key is not None:
        found.append((b"authorization", f"Bearer {api_key}".encode()))
    return [*found, (b"accept-encoding", b"identity"), (b"content-type", b"application/json")]


def response_headers(given: Sequence[Header]) -> list[Header]:
    """Return the headers of the upstream's reply that clients get."""
    return _kept(given, OF_CONNECTIONS | OF_THE_UPSTREAMS_HOST)


def _kept(given: Iterable[Header], drop: frozenset[bytes]) -> list[Header]:
    headers = [(name.lower(), value) for name, value in given]
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [
        (name, value)
        for name, value in headers
        if name not in drop and name not in named and not name.startswith(OURS)
    ]

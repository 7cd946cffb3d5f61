"""The pretend upstream, one for each file that asks for it."""

from collections.abc import Iterator

import pytest

from tests.upstreams import FakeUpstream, fake_upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    """Serve the pretend upstream."""
    with fake_upstream() as found:
        yield found


@pytest.fixture
def asked(upstream: FakeUpstream) -> FakeUpstream:
    """The upstream, before any request of a test."""
    upstream.requests.clear()
    upstream.has_begun.clear()
    upstream.was_left.clear()
    return upstream

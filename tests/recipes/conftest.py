"""The server that recipes are run against, once for each thing that becomes of a flagged prompt."""

from collections.abc import Iterator

import pytest

from tests.recipes.places import serving
from tests.servers import Running


@pytest.fixture(scope="module", params=["respond", "refuse", "block"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Running]]:
    """Serve, and say what becomes of flagged prompts."""
    with serving(request.param) as found:
        yield request.param, found

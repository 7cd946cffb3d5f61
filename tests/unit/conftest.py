"""What many unit tests run on: a tiny model of each architecture."""

import pytest

from demur.modeling.load import LoadedModel
from tests.tiny import CONFIGS, tiny


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """Return a tiny model; a test that asks for it runs on each architecture."""
    return tiny(request.param)

"""Every engine, for the suites of what engines promise."""

import pytest

from demur.core.protocols import Engine
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from tests.engine_runs import MakeEngine
from tests.tiny import tiny
from tests.vllm_engines import needs_vllm, shared

ENGINES: dict[str, MakeEngine] = {
    "fake": lambda max_batch: FakeEngine(max_batch=max_batch),
    "transformers": lambda max_batch: TransformersEngine(tiny(), max_batch=max_batch),
    "vllm": shared,
}
MARKS = {"vllm": needs_vllm}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in ENGINES])
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Return what makes an engine; a test that asks for it runs on each."""
    return ENGINES[request.param]


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    """Return an engine that decodes three rows together."""
    return make_engine(3)

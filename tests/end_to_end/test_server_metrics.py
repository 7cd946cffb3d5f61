"""What Prometheus scrapes of an engine that keeps the beginnings of prompts."""

from demur.engines.fake import FakeEngine
from tests.guards import marker_guard
from tests.servers import app_of, running

NAME = "demur_prefix_cache_bypassed_total"


class CachingEngine(FakeEngine):
    """The pretend model, with a count of prompts that its cache did not help."""

    num_cache_bypassed = 0


def test_prompts_that_did_not_read_the_prefix_cache_are_counted() -> None:
    engine = CachingEngine()
    with running(app_of(marker_guard(engine))) as found:
        assert f"{NAME} 0.0" in found.get("/metrics").text
        engine.num_cache_bypassed = 3
        assert f"{NAME} 3.0" in found.get("/metrics").text


def test_an_engine_without_such_a_cache_has_no_such_count() -> None:
    with running(app_of(marker_guard(FakeEngine()))) as found:
        assert NAME not in found.get("/metrics").text

"""What Prometheus scrapes: counts by route, flags by detector, and how long the guard took.

Labels are bounded: routes, detectors and kinds of errors are the operator's, never a client's. A
prompt that passed without a score has a route of its own, and is never counted as a pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

import demur
from demur.core.results import Reply

GUARD_BUCKETS = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.5, 1.0,
)  # fmt: skip
"""Seconds, from 10 microseconds."""
WAIT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds that a client may feel."""


class _CacheBypassed(Collector):
    """A count that the engine keeps.

    Args:
        count: Returns it.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield it as it is now."""
        yield CounterMetricFamily(
            "demur_prefix_cache_bypassed",
            "Prompts that did not read the prefix cache, since a detector needs all their tokens",
            value=self._count(),
        )


class Judged(Protocol):
    """A verdict, as far as it is counted."""

    @property
    def detector(self) -> str:
        """Whose it is."""

    @property
    def flagged(self) -> bool:
        """The prompt was flagged."""

    @property
    def error(self) -> str | None:
        """Why there is no score; None if there is one."""


class Routed(Protocol):
    """What became of a prompt."""

    @property
    def route(self) -> str:
        """Who answered."""

    @property
    def would_route(self) -> str | None:
        """Who would have answered, of a guard that observes."""

    @property
    def verdicts(self) -> Sequence[Judged]:
        """Of the detectors."""


class PromptCounters:
    """What became of prompts.

    Args:
        registry: Where the counters go.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = _counter(registry, "requests", "Answers to prompts", "endpoint", "route")
        self._would = _counter(registry, "would_route", "Routes of a guard that observes", "route")
        self._flags = _counter(registry, "flags", "Prompts flagged, by detector", "detector")
        self._unscored = _counter(registry, "unscored", "Prompts without a score", "detector")

    def count(self, endpoint: str, found: Routed) -> None:
        """Count one answered, or failed, prompt."""
        self._requests.labels(endpoint, found.route).inc()
        if found.would_route is not None:
            self._would.labels(found.would_route).inc()
        for verdict in found.verdicts:
            if verdict.error is not None:
                self._unscored.labels(verdict.detector).inc()
            elif verdict.flagged:
                self._flags.labels(verdict.detector).inc()


def _counter(registry: CollectorRegistry, name: str, about: str, *labels: str) -> Counter:
    return Counter(f"demur_{name}", about, labels, registry=registry)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._prompts = PromptCounters(self.registry)
        self._tokens = self._counter("tokens", "Tokens read or drawn", "kind")
        self._errors = self._counter("errors", "Requests refused or failed", "endpoint", "code")
        self._guard = self._histogram("guard", "The guard's own time a prompt", GUARD_BUCKETS)
        self._prefill = self._histogram("prefill", "The reading of a prompt", WAIT_BUCKETS)
        self._first = self._histogram("first_token", "From request to first token", WAIT_BUCKETS)
        self._total = self._histogram("reply", "From request to last token", WAIT_BUCKETS)
        self._upstream = self._histogram(
            "upstream", "From sending to the upstream to its last byte", WAIT_BUCKETS
        )
        self.waiting = Gauge(
            "demur_waiting_requests", "Requests in the queue", registry=self.registry
        )
        self.running = Gauge(
            "demur_running_requests", "Requests in the batch", registry=self.registry
        )
        self.ready = Gauge("demur_ready", "1 if the self-test passed", registry=self.registry)
        build = Gauge("demur_build_info", "Always 1", ["version"], registry=self.registry)
        build.labels(demur.__version__).set(1)

    def watch_prefix_cache(self, num_bypassed: Callable[[], int]) -> None:
        """Show how many prompts an engine kept from reading its prefix cache."""
        self.registry.register(_CacheBypassed(num_bypassed))

    def count(self, endpoint: str, reply: Reply, *, num_prompt_tokens: int) -> None:
        """Count one answered, or failed, prompt."""
        self._prompts.count(endpoint, reply)
        self._tokens.labels("prompt").inc(num_prompt_tokens)
        self._tokens.labels("reply").inc(len(reply.token_ids))
        timings = reply.timings
        if timings.prefill_s:
            self._guard.observe(timings.guard_s)
            self._prefill.observe(timings.prefill_s)
        if reply.token_ids:
            self._first.observe(timings.first_token_s)
            self._total.observe(timings.total_s)

    def count_upstream(self, *, seconds: float, num_reply_tokens: int) -> None:
        """Count what another server answered, beside the prompt itself."""
        self._upstream.observe(seconds)
        self._tokens.labels("reply").inc(num_reply_tokens)

    def count_error(self, endpoint: str, code: str) -> None:
        """Count a request that was refused or failed; `code` is one of the server's own."""
        self._errors.labels(endpoint, code).inc()

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return _counter(self.registry, name, about, *labels)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"demur_{name}_seconds", about, buckets=buckets, registry=self.registry)

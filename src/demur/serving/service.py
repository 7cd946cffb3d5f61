"""What the server's endpoints share: the guard behind a scheduler, its state, and its bookkeeping.

A service starts without a guard and loads it in a thread, so that probes are answered meanwhile. It
becomes ready when the detectors' fingerprints were replayed and nothing had moved.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from demur.core import registry
from demur.core.errors import DemurError, ModelMismatchError
from demur.core.preparing import Loadable
from demur.core.protocols import Engine, PrefixCachingEngine
from demur.core.types import ModelId
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard, fingerprint
from demur.guard.loading import Opened, open_detector, readouts_of
from demur.guard.monitor import ReplyMonitor
from demur.guard.packaged import FALLBACK, PACKAGED, responder_line
from demur.guard.responding import load_mid_reply, load_responder, loads_of, route_of
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.serving.errors import ApiError
from demur.serving.metrics import Metrics
from demur.serving.records import Records
from demur.serving.scheduler import Scheduler
from demur.serving.settings import Settings
from demur.serving.upstream import Upstream

LOADING = "the model is being loaded"
STOPPING = "the server is stopping"
LET_GO_S = 5.0
"""What the engine's step may take in which it sees that nobody waits any more, in seconds."""
ENGINE_ENDED = "the engine has ended: restart the server, its log says why"


@dataclass(frozen=True)
class Loaded:
    """A guard, and what its self-test found."""

    guard: Guard
    problem: str | None = None
    """Why it must not serve; None if nothing has moved."""


def load_guard(settings: Settings) -> Loaded:
    """Load model, detectors and responder, and replay the detectors' fingerprints.

    Raises:
        DemurError: Something named in the settings does not exist or does not fit.
    """
    engine = _engine(settings)
    opened = [open_detector(source, engine, verify=False) for source in settings.detectors]
    watching = [
        open_detector(source, engine, watches="reply", verify=False)
        for source in [settings.reply.detector]
        if source is not None
    ]
    responds = settings.on_flagged == "respond"
    line = _responder_line(settings, engine)
    route = route_of(line) if responds else settings.on_flagged
    responder = load_responder(line, engine.model_id) if responds else FixedReply(settings.refusal)
    guard = Guard(
        engine,
        [of.calibrated(settings.fpr) for of in opened],
        route=FlaggedTo(route),
        responders={route: responder},
        on_error=settings.on_error,
        observes=settings.observe,
        monitor=_monitor(settings, watching, engine),
    )
    try:
        for of in (*opened, *watching):
            fingerprint.verify(of.artifact, engine, of.detector)
    except ModelMismatchError as error:
        return Loaded(guard, str(error))
    return Loaded(guard)


def _engine(settings: Settings) -> Engine:
    """Load the engine that the settings name.

    Raises:
        CapabilityError: A detector is not linear, or an adapter or vectors cannot be run, and the
            engine is vLLM.
        ConfigError: There is no such model.
        MissingPackageError: vLLM is not installed.
    """
    if settings.engine == "transformers":
        return TransformersEngine.load(
            settings.model, dtype=settings.dtype, max_batch=settings.limits.max_batch
        )
    gib = settings.vllm.kv_cache_gib
    engine: Engine = registry.load("engines", settings.engine).load(
        settings.model,
        readouts=partial(readouts_of, settings.detectors),
        interventions=partial(_interventions, settings),
        dtype=settings.dtype,
        max_batch=settings.limits.max_batch,
        max_tokens=settings.vllm.max_model_len,
        is_eager=settings.vllm.enforce_eager,
        options={} if gib is None else {"kv_cache_memory_bytes": int(gib * 2**30)},
    )
    return engine


def _interventions(settings: Settings, model_id: ModelId) -> Sequence[Loadable]:
    """Return what vLLM has to load; without being asked it gets no adapter, which would slow it."""
    line = settings.responder
    if settings.on_flagged != "respond" or line == PACKAGED:
        return ()
    return loads_of(line, model_id)


def _responder_line(settings: Settings, engine: Engine) -> str:
    """Return who answers flagged prompts; a model that only judges is not asked by default."""
    if settings.responder == PACKAGED and settings.upstream.url is not None:
        return FALLBACK
    return responder_line(settings.responder, engine)


def _monitor(settings: Settings, watching: Sequence[Opened], engine: Engine) -> ReplyMonitor | None:
    if not watching:
        return None
    reply = settings.reply
    return ReplyMonitor(
        watching[0].calibrated(reply.fpr),
        load_mid_reply(reply.responder, engine.model_id, cache=reply.cache),
        hold_tokens=reply.hold_tokens,
    )


class Service:
    """A guard that serves, from its loading to its end.

    Args:
        settings: Of the server.
        load: Loads the guard; called once, in a thread.
    """

    def __init__(self, settings: Settings, *, load: Callable[[Settings], Loaded]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._problem: str | None = LOADING
        self.started_at = int(time.time())
        """Unix time in seconds."""
        self._load = load
        self._guard: Guard | None = None
        self._scheduler: Scheduler | None = None
        # One at a time: tokenizers do not like to be used by several threads.
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="demur-render")
        self.records = Records(settings.audit)
        upstream = settings.upstream
        self._upstream = None if upstream.url is None else Upstream(upstream.url, upstream)
        self._later: set[asyncio.Task[None]] = set()
        self._pruning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the guard; a failure is the service's problem, and its probes tell it."""
        try:
            loaded = await asyncio.to_thread(self._load, self.settings)
        except Exception as error:
            is_ours = isinstance(error, DemurError)
            self._problem = str(error) if is_ours else "the guard could not be loaded, see the log"
            raise
        limits = self.settings.limits
        self._guard = loaded.guard
        self._scheduler = Scheduler(loaded.guard.engine, max_waiting=limits.max_waiting)
        self._pruning = asyncio.create_task(self.records.keep_pruned())
        self._problem = loaded.problem
        engine = loaded.guard.engine
        if isinstance(engine, PrefixCachingEngine):
            self.metrics.watch_prefix_cache(lambda: engine.num_cache_bypassed)
        self.metrics.ready.set_function(lambda: self.problem is None)
        self.metrics.waiting.set_function(lambda: self.scheduler.num_waiting)
        self.metrics.running.set_function(lambda: self.scheduler.num_running)

    async def stop(self) -> None:
        """Stop, once requests have ended or were given up: the engine has to let go of the rest."""
        self._problem = STOPPING
        if self._scheduler is not None:
            await asyncio.to_thread(self._scheduler.close, timeout_s=LET_GO_S)
        self._renderer.shutdown(wait=False, cancel_futures=True)
        if self._pruning is not None:
            self._pruning.cancel()
        if self._upstream is not None:
            await self._upstream.close()
        await asyncio.gather(*self._later, return_exceptions=True)
        await self.records.close()

    def do_later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work that no client waits for."""
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    @property
    def problem(self) -> str | None:
        """Why nothing is served; None is ready."""
        if self._problem is None and not self.scheduler.is_alive:
            return ENGINE_ENDED
        return self._problem

    @property
    def is_loaded(self) -> bool:
        """There is a guard, ready or not."""
        return self._guard is not None

    @property
    def guard(self) -> Guard:
        """The guard, once it is loaded."""
        assert self._guard is not None, "require_ready comes first"
        return self._guard

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, once the guard is loaded."""
        assert self._scheduler is not None, "require_ready comes first"
        return self._scheduler

    @property
    def upstream(self) -> Upstream:
        """The server that answers, where the local model only judges."""
        assert self._upstream is not None, "its endpoints exist only with an upstream"
        return self._upstream

    @property
    def renderer(self) -> ThreadPoolExecutor:
        """Where chats are rendered."""
        return self._renderer

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.settings.model_name or self.guard.engine.model_id.name

    def require_ready(self) -> None:
        """Refuse to serve before the self-test has passed.

        Raises:
            ApiError: 503, with the reason.
        """
        if self.problem is not None:
            raise ApiError(
                503,
                f"not ready: {self.problem}",
                type="server_error",
                code="not_ready",
                headers={"Retry-After": str(self.settings.limits.retry_after_s)},
            )

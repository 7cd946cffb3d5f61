"""The guard: reads the prefill through an engine, lets detectors judge it, and routes the request.

It fails closed. A request's route stays `error` until every detector has judged it, the route has
chosen and the responder has answered; whatever goes wrong on the way leaves it there.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self, get_args

from demur.core.errors import CapabilityError, ConfigError, DemurError
from demur.core.interventions import Intervention
from demur.core.preparing import checkpoints, foreseen, prepare
from demur.core.protocols import Engine, Monitor, Request, Responder, never
from demur.core.readings import Readings
from demur.core.reads import Checkpoint
from demur.core.results import (
    ERROR,
    PASS,
    PASS_UNSCORED,
    STOPPED,
    SWITCHED,
    Reply,
    Token,
    Verdict,
)
from demur.core.types import Prompt, Sampling
from demur.guard.calibrated import CalibratedDetector
from demur.guard.deciding import OnError, chosen_route, verdict_on
from demur.guard.exchange import (
    ChatLike,
    Exchange,
    replies_of,
    tokens_of,
    turned_route,
    with_ids,
)
from demur.guard.loading import load_detector
from demur.guard.monitor import ReplyMonitor
from demur.guard.packaged import PACKAGED, responder_line
from demur.guard.responding import load_mid_reply, load_responder, route_of
from demur.guard.routes import FlaggedTo, Route

GREEDY = Sampling()
SCORE_ONLY = Sampling(max_tokens=0)


class Guard:
    """Answers chats with the untouched model, except those that its detectors flag.

    Args:
        engine: Runs the model.
        detectors: Judge every prompt, in this order.
        route: Says from the verdicts who answers.
        responders: By the names that the route knows them by.
        on_error: What becomes of a prompt that cannot be scored. `refuse` replies with an error;
            `raise` raises it; `pass_unscored` lets the other detectors decide and, if they pass
            the prompt, answers it with the route `pass_unscored`. What cannot be rendered, or
            fails in the engine, a route or a responder, is never answered.
        observes: Only observe: the untouched model answers what can be rendered; `would_route`
            says what a guard that acts would have done, and what has no score is `pass_unscored`.
        monitor: Watches replies while they are decoded; None shows them as they are.

    Raises:
        ConfigError: There are no detectors, two have one name, or the route, the responders and
            the monitor do not fit together.
        CapabilityError: The engine cannot do a read or an intervention that is needed.
        DataError: What a responder was trained to be has changed, or does not fit the model.
        ModelMismatchError: An adapter does not fit the model.
    """

    def __init__(
        self,
        engine: Engine,
        detectors: Sequence[CalibratedDetector],
        *,
        route: Route,
        responders: Mapping[str, Responder],
        on_error: OnError = "refuse",
        observes: bool = False,
        monitor: ReplyMonitor | None = None,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error is {on_error!r}: expected one of {get_args(OnError)}")
        _check_detectors(engine, detectors)
        _check_responders(engine, route, responders)
        may_come = foreseen(responders.values())
        if monitor is not None:
            _check_monitor(engine, monitor, [detector.name for detector in detectors])
            monitor.check_readable(responders)
            may_come = (*may_come, monitor.intervention)
        prepare(engine, may_come)
        self.engine = engine
        self.detectors = tuple(detectors)
        self._route = route
        self._responders = dict(responders)
        self._on_error = on_error
        self._observes = observes
        self.monitor = monitor
        watching = () if monitor is None else (monitor.detector,)
        self.versions = {of.name: of.version for of in (*detectors, *watching)}
        """The version of each detector's fitted state, by name; of the one of replies too."""
        stores = Checkpoint in engine.capabilities and not observes
        routed = foreseen(responders[name] for name in sorted(route.responders))
        self._checkpoints = checkpoints(routed) if stores else ()
        self._reads = tuple(dict.fromkeys(read for d in detectors for read in d.detector.reads))

    @classmethod
    def load(
        cls,
        engine: Engine,
        *,
        detectors: Sequence[str | Path] = ("pretrained",),
        responder: str = PACKAGED,
        fpr: float | None = None,
        on_error: OnError = "refuse",
        reply_detector: str | Path | None = None,
        reply_responder: str | None = None,
    ) -> Self:
        """Make a guard of detectors on disk and one responder for what any of them flags.

        Args:
            engine: Runs the model.
            detectors: Artifact folders, or names of packaged ones; see `load_detector`.
            responder: A method's name, with its fields or its artifact's folder after a colon; see
                `load_responder`; `pretrained` is the packaged adapter of the engine's model, or
                `fixed_reply` where none ships.
            fpr: The false-positive rate to set thresholds for; None is each artifact's default.
            on_error: See the class.
            reply_detector: An artifact that watches replies, or `pretrained`; None leaves replies
                unwatched.
            reply_responder: Who takes over a flagged reply: `adapter:FOLDER` or `fixed_reply:TEXT`;
                None ends it before a flagged token is shown.

        Raises:
            ConfigError: There is no such detector, rate or responder.
            ModelMismatchError: A detector was fitted on another model.
        """
        responder = responder_line(responder, engine)
        name = route_of(responder)
        return cls(
            engine,
            [load_detector(source, engine, fpr=fpr) for source in detectors],
            route=FlaggedTo(name),
            responders={name: load_responder(responder, engine.model_id)},
            on_error=on_error,
            monitor=None
            if reply_detector is None
            else ReplyMonitor(
                load_detector(reply_detector, engine, watches="reply"),
                load_mid_reply(reply_responder, engine.model_id),
            ),
        )

    def check(self, chat: ChatLike) -> list[Verdict]:
        """Return the verdicts on a chat, without answering it.

        Raises:
            DemurError: The chat could not be scored, with `on_error="raise"`.
        """
        return list(self.reply(chat, SCORE_ONLY).verdicts)

    def reply(self, chat: ChatLike, sampling: Sampling = GREEDY, *, request_id: str = "0") -> Reply:
        """Answer a chat.

        Args:
            chat: A chat, the text of one user message, or OpenAI-style messages.
            sampling: How the reply is drawn.
            request_id: Seeds the reply, together with the sampling's seed.

        Raises:
            DemurError: The chat could not be scored or answered, with `on_error="raise"`.
        """
        tokens = self.stream(chat, sampling, request_id=request_id)
        while True:
            try:
                next(tokens)
            except StopIteration as end:
                reply: Reply = end.value
                return reply

    def stream(
        self, chat: ChatLike, sampling: Sampling = GREEDY, *, request_id: str = "0"
    ) -> Generator[Token, None, Reply]:
        """Answer a chat token by token.

        Args: As for `reply`.

        Yields:
            The tokens as they come; none for a chat that could not be scored.

        Returns:
            The whole reply, as the generator's value.

        Raises:
            DemurError: The chat could not be scored or answered, with `on_error="raise"`.
        """
        exchange = self.open(chat, sampling, request_id=request_id)
        return (yield from tokens_of(self.engine, exchange))

    def replies(
        self,
        chats: Iterable[ChatLike],
        sampling: Sampling = GREEDY,
        *,
        request_ids: Iterable[str] | None = None,
    ) -> Iterator[Reply]:
        """Answer many chats in one run of the engine, flagged and passed ones side by side.

        Args:
            chats: Taken lazily.
            sampling: How the replies are drawn.
            request_ids: One a chat; None counts from 0.

        Yields:
            A reply for each chat, in order, each as soon as those before it are out.

        Raises:
            DataError: There are fewer ids than chats, or two that run together share one.
            DemurError: A chat could not be scored or answered, with `on_error="raise"`.
        """
        return replies_of(
            self.engine,
            (
                self.open(chat, sampling, request_id=request_id, wants_logprobs=False)
                for chat, request_id in with_ids(chats, request_ids)
            ),
        )

    def open(
        self,
        chat: ChatLike,
        sampling: Sampling = GREEDY,
        *,
        request_id: str = "0",
        draw_id: str | None = None,
        is_abandoned: Callable[[], bool] = never,
        wants_logprobs: bool = True,
    ) -> Exchange:
        """Render a chat and return its exchange, for callers that run the engine themselves.

        Its request goes to the engine, the events back to it; without one, it is complete.

        Args:
            chat: As for `reply`.
            sampling: How the reply is drawn.
            request_id: Names the events; one of its own for each request under way.
            draw_id: Seeds the draws, together with the sampling's seed; None is `request_id`.
            is_abandoned: Asked now and then: nobody waits for the reply any more.
            wants_logprobs: Of its tokens; see `Request`.
        """
        exchange = Exchange(request_id, self.detectors, raises=self._on_error == "raise")
        prompt = exchange.rendered(self.engine, chat)
        if prompt is None:
            return exchange
        if self.monitor is not None and not self._observes:
            exchange.hold_tokens = self.monitor.hold_tokens
        exchange.request = Request(
            request_id,
            prompt,
            sampling,
            self._reads,
            partial(self._decide, exchange, prompt),
            draw_id=draw_id,
            monitor=self._watching(exchange),
            is_abandoned=is_abandoned,
            wants_logprobs=wants_logprobs,
            checkpoints=self._checkpoints,
        )
        return exchange

    def _watching(self, exchange: Exchange) -> Monitor | None:
        """Return what watches an exchange's reply."""
        if self.monitor is None:
            return None
        intervention = self.monitor.intervention

        def report(verdict: Verdict) -> None:
            exchange.reply_verdict = verdict
            if verdict.flagged and self._observes:
                exchange.would_route = turned_route(intervention)
            elif verdict.flagged and not exchange.is_turned:
                exchange.turn(intervention)

        return self.monitor.watching(report, observes=self._observes)

    def _decide(
        self, exchange: Exchange, prompt: Prompt, readings: Readings
    ) -> Intervention | None:
        """Judge, route and respond; an exception tells the engine to drop the request."""
        if self._observes:
            self._observe(exchange, prompt, readings)
            return None
        try:
            exchange.verdicts = tuple(self._verdict(d, prompt, readings) for d in self.detectors)
            route = self._chosen(exchange.verdicts)
            intervention = None
            if route not in (PASS, PASS_UNSCORED):
                intervention = self._respond(route, prompt, exchange.verdicts)
        except DemurError as error:
            exchange.fail(error)
            raise
        except Exception as error:
            message = f"the prompt could not be routed: {type(error).__name__}: {error}"
            exchange.fail(DemurError(message), cause=error)
            raise
        exchange.route = route
        exchange.awaited = intervention
        return intervention

    def _observe(self, exchange: Exchange, prompt: Prompt, readings: Readings) -> None:
        """Judge and take down the route, without an effect on the answer."""
        try:
            exchange.verdicts = tuple(self._verdict(d, prompt, readings) for d in self.detectors)
            exchange.would_route = self._chosen(exchange.verdicts)
        except Exception as error:  # whatever it is, an observer does not stand in the way
            exchange.would_route = ERROR
            if not exchange.verdicts:
                exchange.verdicts = tuple(d.unscored(str(error)) for d in self.detectors)
        is_scored = exchange.would_route not in (ERROR, PASS_UNSCORED)
        exchange.route = PASS if is_scored else PASS_UNSCORED

    def _verdict(self, detector: CalibratedDetector, prompt: Prompt, readings: Readings) -> Verdict:
        return verdict_on(
            detector,
            readings,
            has_forged_markers=prompt.has_forged_markers,
            raises=self._on_error == "raise",
        )

    def _chosen(self, verdicts: Sequence[Verdict]) -> str:
        return chosen_route(verdicts, self._route, self._responders, on_error=self._on_error)

    def _respond(self, route: str, prompt: Prompt, verdicts: Sequence[Verdict]) -> Intervention:
        responder = self._responders[route]
        intervention = responder.respond(prompt.chat, verdicts)
        if type(intervention) not in responder.needs:
            raise CapabilityError(
                f"responder {route!r} returned {type(intervention).__name__}, which is not among "
                "its needs"
            )
        return intervention


def _check_detectors(engine: Engine, detectors: Sequence[CalibratedDetector]) -> None:
    if not detectors:
        raise ConfigError("a guard without detectors passes everything: give at least one")
    names = [detector.name for detector in detectors]
    if len(set(names)) < len(names):
        raise ConfigError(f"two detectors have the same name: {names}")
    for detector in detectors:
        if detector.detector.watches != "prompt":
            raise ConfigError(
                f"detector {detector.name!r} watches replies: a guard's detectors judge prompts; "
                "give one that was fitted on prompts"
            )
        for read in detector.detector.reads:
            if type(read) not in engine.capabilities:
                raise _incapable(engine, f"detector {detector.name!r}", type(read))


def _check_monitor(engine: Engine, monitor: ReplyMonitor, names: Sequence[str]) -> None:
    if monitor.detector.name in names:
        raise ConfigError(f"two detectors have the same name: {[*names, monitor.detector.name]}")
    for need in (Monitor, type(monitor.intervention)):
        if need not in engine.capabilities:
            raise _incapable(engine, f"detector {monitor.detector.name!r}", need)


def _check_responders(engine: Engine, route: Route, responders: Mapping[str, Responder]) -> None:
    reserved = {PASS, PASS_UNSCORED, ERROR, STOPPED, SWITCHED} & set(responders)
    if reserved:
        raise ConfigError(f"responders cannot be called {sorted(reserved)}: these are routes")
    unknown = route.responders - set(responders)
    if unknown:
        raise ConfigError(
            f"the route names {sorted(unknown)}, but the responders are {sorted(responders)}"
        )
    for name, responder in responders.items():
        for need in sorted(responder.needs - engine.capabilities, key=lambda need: need.__name__):
            raise _incapable(engine, f"responder {name!r}", need)


def _incapable(engine: Engine, who: str, need: type) -> CapabilityError:
    can = ", ".join(sorted(capability.__name__ for capability in engine.capabilities))
    return CapabilityError(
        f"{who} needs {need.__name__}, but {type(engine).__name__} can only do: {can}"
    )

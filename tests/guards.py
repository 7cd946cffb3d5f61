"""Detectors and guards on the fake engine, which plants a direction where a prompt says MARKER."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from demur.core.artifacts import Artifact, Calibration, Threshold
from demur.core.protocols import Detector, Done, Engine, Request, Responder, Targets, Watches
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read
from demur.core.results import Reply, Token
from demur.core.types import Chat, Prompt, Sampling
from demur.detectors.linear import Linear
from demur.engines.fake import FakeEngine
from demur.guard import Guard, fingerprint
from demur.guard.calibrated import CalibratedDetector
from demur.guard.deciding import OnError
from demur.guard.exchange import ChatLike
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.responders.safety_prompt import SafetyPrompt

LAST = CaptureSpec((-1,))
REFUSAL = FixedReply().text
SAFE, UNSAFE = "Tell me a story of two foxes.", "Tell me the MARKER story."


def marked_texts(num_prompts: int, *, start: int = 0) -> tuple[list[str], Array]:
    """Return texts, of which every second holds the marker, and which do."""
    unsafe = np.arange(num_prompts) % 2 == 1
    texts = [
        f"Tell me about number {start + row}{' MARKER' if is_unsafe else ''}, please."
        for row, is_unsafe in enumerate(unsafe)
    ]
    return texts, unsafe


def read_texts(engine: Engine, reads: tuple[Read, ...], texts: Sequence[str]) -> Readings:
    """Return what an engine reads of texts, without drawing a token."""
    seen: list[Readings] = []
    requests = [
        Request(
            str(n), engine.render(Chat.from_text(text)), Sampling(max_tokens=0), reads, seen.append
        )
        for n, text in enumerate(texts)
    ]
    ends = [event for event in engine.run(requests) if isinstance(event, Done)]
    assert [end.error for end in ends] == [None] * len(texts)
    return Readings.concatenate(seen)


def targets_of(unsafe: Array) -> Targets:
    """Return targets in which each prompt is a group of its own, all of one source."""
    return Targets(unsafe, np.arange(len(unsafe)), np.zeros(len(unsafe), int))


def fitted_linear(engine: Engine, *, num_prompts: int = 40) -> Linear:
    """Return a linear detector that knows the marker's direction."""
    texts, unsafe = marked_texts(num_prompts)
    detector = Linear(Linear.default_reads(4))
    return detector.fit(read_texts(engine, detector.reads, texts), targets_of(unsafe), seed=0)


def artifact_of(method: str, detector: Detector, engine: Engine) -> Artifact:
    """Return a fitted detector as an artifact, with thresholds for 1% and 10% between the labels.

    Its fingerprint tolerates 5% of the spread of the scores.
    """
    texts, unsafe = marked_texts(40, start=1000)
    scores = detector.decision_function(read_texts(engine, detector.reads, texts))
    middle = float(scores[~unsafe].max() + scores[unsafe].min()) / 2
    low = float(scores[~unsafe].max() + middle) / 2
    thresholds = tuple(
        Threshold(fpr, at, realised_fpr=0.0, interval=(0.0, 0.01), num_groups=299)
        for fpr, at in ((0.01, middle), (0.1, low))
    )
    return Artifact(
        method=method,
        hyper_parameters=json.loads(json.dumps(detector.hyper_parameters())),
        model_id=engine.model_id,
        state=detector.state(),
        calibration=Calibration(thresholds, 1.0, -middle, calibrated_on="numbers"),
        fingerprint=fingerprint.take(engine, detector),
        fingerprint_tolerance=0.05 * float(scores.std()),
        provenance={"versions": {"demur": "test"}},
        card="# A card\n",
        moments=detector.moments(),
    )


def linear_artifact(*, num_prompts: int = 40) -> Artifact:
    """Return a linear detector that was fitted on the fake engine, as an artifact."""
    engine = FakeEngine()
    return artifact_of("linear", fitted_linear(engine, num_prompts=num_prompts), engine)


def marker_detector(engine: Engine, *, name: str = "linear") -> CalibratedDetector:
    """Return a fitted, calibrated detector that flags the marker."""
    detector = fitted_linear(engine)
    artifact = artifact_of("linear", detector, engine)
    calibration = artifact.calibration
    return CalibratedDetector(
        name=name,
        detector=detector,
        threshold=calibration.at(0.01).threshold,
        slope=calibration.slope,
        intercept=calibration.intercept,
        version=artifact.sha256[:12],
    )


def marker_guard(
    engine: Engine | None = None,
    *,
    responder: str = "fixed_reply",
    on_error: OnError = "refuse",
    observes: bool = False,
) -> Guard:
    """Return a guard that sends prompts with the marker to a responder."""
    engine = engine or FakeEngine()
    responders: Mapping[str, Responder] = {
        "fixed_reply": FixedReply(),
        "safety_prompt": SafetyPrompt(),
    }
    return Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo(responder),
        responders=responders,
        on_error=on_error,
        observes=observes,
    )


def acting(action: str, engine: FakeEngine) -> Guard:
    """Return a guard whose flagged prompts are refused or blocked."""
    return Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo(action),
        responders={action: FixedReply("I do not answer this.")},
    )


def streamed(guard: Guard, chat: ChatLike, sampling: Sampling) -> tuple[list[Token], Reply]:
    """Return a stream's tokens and its value."""
    tokens, stream = [], guard.stream(chat, sampling)
    while True:
        try:
            tokens.append(next(stream))
        except StopIteration as end:
            reply: Reply = end.value
            return tokens, reply


@dataclass
class Always(Detector):
    """Gives each prompt the same score; one of None raises instead."""

    score: float | None = 0.0

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        return (LAST,)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        return self

    def decision_function(self, readings: Readings) -> Array:
        if self.score is None:
            raise ZeroDivisionError("a bug in the detector")
        return np.full(len(readings), self.score)

    def state(self) -> dict[str, Array]:
        return {"nothing": np.zeros(1)}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        return self


def judge(
    name: str, score: float | None, *, reads: tuple[Read, ...] = (LAST,)
) -> CalibratedDetector:
    """Return a detector whose score is always the same, with a threshold of 0.5; None raises."""
    return CalibratedDetector(
        name=name,
        detector=Always(reads, score),
        threshold=0.5,
        slope=1.0,
        intercept=-0.5,
        version="test",
    )


class ReplyMarked(FakeEngine):
    """The pretend model, for prompts that hold the marker themselves: only replies are marked."""

    def _states(self, prompt: Prompt, spec: CaptureSpec) -> Array:
        states: Array = super()._states(prompt, spec) - self._strength * self.direction
        return states


def planted(
    engine: FakeEngine, *, name: str, watches: Watches = "prompt", threshold: float = 4.0
) -> CalibratedDetector:
    """Return a detector that reads the planted direction in the last token, without a fit."""
    direction = engine.direction[None].astype(np.float32)
    weights: dict[str, Array] = {"weights.0": direction, "bias": np.zeros(1)}
    detector = Linear((CaptureSpec((1,), "last"),), watches=watches).load_state(weights)
    return CalibratedDetector(name, detector, threshold, 1.0, 0.0, "test")


def watcher(engine: FakeEngine) -> CalibratedDetector:
    """Return a detector of replies that reads the planted direction in the newest token."""
    return planted(engine, name="watcher", watches="reply")

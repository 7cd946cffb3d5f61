"""A detector's fingerprint: what it says of a few fixed texts on the engine that fitted it.

Hashes tell another architecture or tokenizer; only running the model tells other weights, another
number format or quantisation.
"""

import copy
from collections.abc import Mapping
from functools import partial

import numpy as np

from demur.core.artifacts import Artifact
from demur.core.errors import DemurError, ModelMismatchError
from demur.core.protocols import Detector, Done, Engine, Request
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, OwnPass
from demur.core.types import Chat, Prompt, Sampling

FINGERPRINT_TEXTS = (
    "What is the capital of Portugal?",
    "Dear Anna,\nplease help me write a short thank-you note to my neighbour.",
    "def area(width: float, height: float) -> float:\n    return width * height",
    "¿Cuánto tarda en hervir un huevo? Wie lange dauert es? 需要多长时间？",
)
"""Changing one makes every stored fingerprint worthless."""
FINGERPRINT_REPLIES = (
    "The capital of Portugal is Lisbon.",
    "Dear neighbour,\nthank you for looking after the cat. She sends her regards.",
    "That function returns the area of a rectangle: `width * height`.",
    "Un huevo duro tarda unos diez minutos. Etwa zehn Minuten. 大约十分钟。",
)
"""What stands after the texts for a detector that watches replies; likewise."""

OWN_PASS_TOLERANCE = 1.0
"""Largest difference of a log-probability that still counts as the same model: number formats make
a few tenths, other weights several units."""


def take(engine: Engine, detector: Detector) -> dict[str, Array]:
    """Return a fitted detector's fingerprint on an engine.

    Returns:
        `token_ids` [token] of all texts, `lengths` [prompt], `scores` [prompt], and `states.I`
        of read I where it captures states: [prompt, layer, d_model] of a pooled read, otherwise
        [layer, token, d_model] of all texts. `log_probabilities.I` [prompt, label] of read I where
        it is a pass of its own, which is run also where the detector would not have asked for it.

    Raises:
        DemurError: The engine failed on a text.
    """
    prompts = [engine.render(Chat.from_text(text)) for text in FINGERPRINT_TEXTS]
    if detector.watches == "reply":
        prompts = [
            engine.with_reply(prompt, reply)
            for prompt, reply in zip(prompts, FINGERPRINT_REPLIES, strict=True)
        ]
    readings = _read(engine, detector, prompts)
    detector = copy.copy(detector)  # what it counts while it scores is of prompts, not of these
    fingerprint = {
        "token_ids": np.concatenate([np.asarray(p.token_ids, np.int64) for p in prompts]),
        "lengths": np.array([len(prompt) for prompt in prompts], np.int64),
        "scores": detector.decision_function(readings),
    }
    for number, read in enumerate(detector.reads):
        values = readings.values[read]
        if isinstance(read, OwnPass):
            fingerprint[f"log_probabilities.{number}"] = readings.log_probabilities(read)
        if isinstance(read, CaptureSpec):
            fingerprint[f"states.{number}"] = (
                values
                if isinstance(values, np.ndarray)
                else np.concatenate(readings.ragged(read), axis=1)
            )
    return fingerprint


def _read(engine: Engine, detector: Detector, prompts: list[Prompt]) -> Readings:
    parts: dict[int, Readings] = {}
    requests = (
        Request(str(n), prompt, Sampling(max_tokens=0), detector.reads, partial(_keep, parts, n))
        for n, prompt in enumerate(prompts)
    )
    for event in engine.run(requests):
        if isinstance(event, Done) and event.reason == "error":
            raise DemurError(f"the engine failed on fingerprint text {event.id}: {event.error}")
    return Readings.concatenate([parts[number] for number in range(len(prompts))])


def _keep(parts: dict[int, Readings], number: int, readings: Readings) -> None:
    parts[number] = readings


def verify(artifact: Artifact, engine: Engine, detector: Detector) -> None:
    """Compare a stored fingerprint with one taken now.

    Args:
        artifact: Holds the fingerprint and its tolerance.
        engine: The engine that is about to run the detector.
        detector: The artifact's, fitted.

    Raises:
        ModelMismatchError: The tokens differ, or a score by more than the tolerance, or an answer
            in a pass of its own.
    """
    found, stored = take(engine, detector), artifact.fingerprint
    require_alike(artifact, found, name=engine.model_id.name)
    what = _of(artifact)
    for number, read in enumerate(detector.reads):
        if isinstance(read, OwnPass):
            key = f"log_probabilities.{number}"
            difference = float(np.abs(found[key] - stored[key]).max())
            if not difference <= OWN_PASS_TOLERANCE:
                raise ModelMismatchError(
                    f"{what} asks model {read.model!r}, which answers differently now: by up to "
                    f"{difference:.4g} in log-probability, tolerated is {OWN_PASS_TOLERANCE:g}. "
                    "Name the model that it was calibrated with, or calibrate it again"
                )


def require_alike(artifact: Artifact, found: Mapping[str, Array], *, name: str) -> None:
    """Compare tokens and scores of the fingerprint texts with an artifact's.

    Args:
        artifact: Holds the fingerprint and its tolerance.
        found: `token_ids`, `lengths` and `scores`, as of `take`.
        name: Of the model that gave them.

    Raises:
        ModelMismatchError: The tokens differ, or a score by more than the tolerance.
    """
    what, stored = _of(artifact), artifact.fingerprint
    if not all(np.array_equal(found[key], stored[key]) for key in ("lengths", "token_ids")):
        raise ModelMismatchError(
            f"{what} knows other tokens for the fingerprint texts than {name} gives: fit it again "
            "with this tokenizer and this demur"
        )
    difference = float(np.abs(found["scores"] - stored["scores"]).max())
    if not difference <= artifact.fingerprint_tolerance:  # also true for a NaN
        raise ModelMismatchError(
            f"{what} scores the fingerprint texts differently on {name}: by up to "
            f"{difference:.4g}, tolerated is {artifact.fingerprint_tolerance:.4g}. The weights, "
            "number format or quantisation differ: fit it again, or pass verify=False if this is "
            "meant"
        )


def _of(artifact: Artifact) -> str:
    return f"detector {artifact.method!r}, fitted on {artifact.model_id.name},"

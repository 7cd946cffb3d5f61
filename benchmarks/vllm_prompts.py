"""The prompts of the vLLM benchmarks, from those that ship; no text of theirs is shown.

Which are flagged says the engine itself, beforehand. Only prompts are taken whose score lies well
to one side of the threshold: what else is in a batch moves scores a little in bfloat16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
from transformers import AutoConfig

from benchmarks.overhead import WORDS
from benchmarks.random_guards import NEVER, random_detector, reads_of
from demur.core.errors import DataError
from demur.core.linear import LinearDetector
from demur.core.protocols import Engine
from demur.core.readings import Array
from demur.core.readout import LinearReadout
from demur.core.types import Chat
from demur.datasets import starter, written
from demur.detectors.linear import Linear
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.guard import SCORE_ONLY
from demur.guard.responding import load_responder, route_of
from demur.guard.routes import FlaggedTo

MARGIN = 0.25
"""Least distance of a score from its threshold, in standard deviations of all scores."""
AT_A_TIME = 64


@dataclass(frozen=True)
class Pool:
    """Prompts by what becomes of them."""

    ordinary: tuple[Chat, ...]
    flagged: tuple[Chat, ...]


@dataclass(frozen=True)
class Candidates:
    """Prompts to choose from."""

    seed: int
    """Of their order."""
    most_tokens: int
    """Of a prompt."""
    system: str | None = None
    """A system message for all; None leaves prompts as they are."""


def guard_of(engine: Engine, detectors: Sequence[CalibratedDetector], responder: str) -> Guard:
    """Return a guard of detectors that are loaded already."""
    name = route_of(responder)
    responders = {name: load_responder(responder, engine.model_id)}
    return Guard(engine, detectors, route=FlaggedTo(name), responders=responders)


def last_only(of: CalibratedDetector, *, threshold: float = NEVER) -> CalibratedDetector:
    """Return the part of a detector that reads the last token: it may use the prefix cache.

    Raises:
        DataError: It is not linear, or reads the last token not once.
    """
    detector = of.detector
    readout = detector.readout() if isinstance(detector, LinearDetector) else None
    specs = [] if readout is None else [s for s in readout.weights if s.positions == "last"]
    if readout is None or len(specs) != 1:
        raise DataError(f"detector {of.name!r} does not read the last token once, by weights")
    state = {"bias": np.zeros(1), "weights.0": readout.weights[specs[0]]}
    fitted = Linear((specs[0],)).load_state(state)
    return CalibratedDetector("last-token", fitted, threshold, 1.0, 0.0, of.version)


def shared_text(num_words: int) -> str:
    """Return a system message for all prompts."""
    return " ".join(islice(cycle(WORDS), num_words))


def random_weights(model: str) -> tuple[CalibratedDetector, LinearReadout]:
    """Return a detector for a model of random weights, which has none, and its read-out.

    Args:
        model: Its folder.
    """
    config = AutoConfig.from_pretrained(model)
    found = random_detector(reads_of(config.num_hidden_layers), config.hidden_size, seed=0)
    assert isinstance(found.detector, LinearDetector), "random weights are of linear ones"
    return found, found.detector.readout()


def flagging_a_third(
    engine: Engine, detector: CalibratedDetector, candidates: Candidates
) -> CalibratedDetector:
    """Return a detector with a threshold that a third of the prompts reach.

    Args:
        engine: Scores them.
        detector: With any threshold.
        candidates: The prompts.
    """
    guard = guard_of(engine, [detector], "fixed_reply")
    some = list(islice(_candidates(engine, candidates), 2 * AT_A_TIME))
    scores = _scores(guard, some)[:, 0]
    return replace(detector, threshold=float(np.quantile(scores, 2 / 3)))


def choose(
    engine: Engine,
    detector: CalibratedDetector,
    candidates: Candidates,
    *,
    num_ordinary: int,
    num_flagged: int,
) -> tuple[Pool, CalibratedDetector]:
    """Choose prompts, and set the threshold of the detector's part that reads the last token.

    Args:
        engine: Scores them.
        detector: Must flag the flagged ones alone, and so must its part.
        candidates: The prompts.
        num_ordinary: How many pass.
        num_flagged: How many are flagged.

    Raises:
        DataError: There are not so many.
    """
    part = last_only(detector)
    guard = guard_of(engine, [detector, part], "fixed_reply")
    chats: list[Chat] = []
    scores, ordinary, flagged = np.empty((0, 2)), np.empty(0, int), np.empty(0, int)
    waiting = _candidates(engine, candidates)
    while some := list(islice(waiting, AT_A_TIME)):
        chats += some
        scores = np.vstack([scores, _scores(guard, some)])
        part = last_only(detector, threshold=_between(scores, detector.threshold))
        sides = sides_of(scores, np.array([detector.threshold, part.threshold]))
        ordinary, flagged = (np.flatnonzero(sides == side) for side in (-1, 1))
        if len(ordinary) >= num_ordinary and len(flagged) >= num_flagged:
            pool = Pool(
                tuple(chats[n] for n in ordinary[:num_ordinary]),
                tuple(chats[n] for n in flagged[:num_flagged]),
            )
            return pool, part
    raise DataError(
        f"of {len(chats)} prompts {len(ordinary)} pass and {len(flagged)} are flagged: expected "
        f"{num_ordinary} and {num_flagged}; ask for fewer"
    )


def sides_of(scores: Array, thresholds: Array) -> Array:
    """Return for each prompt 1 if all its scores are well over, -1 if well under, 0 between.

    Args:
        scores: [prompt, detector].
        thresholds: [detector].
    """
    distances = (scores - thresholds) / scores.std(axis=0)
    over, under = (distances >= MARGIN).all(axis=1), (distances <= -MARGIN).all(axis=1)
    sides: Array = over.astype(int) - under.astype(int)
    return sides


def _between(scores: Array, threshold: float) -> float:
    """Return the middle between the second scores of prompts that the first one tells apart."""
    is_flagged = scores[:, 0] >= threshold
    if is_flagged.all() or not is_flagged.any():
        return float(np.median(scores[:, 1]))
    medians = [np.median(scores[is_flagged == side, 1]) for side in (True, False)]
    return float(np.mean(medians))


def _scores(guard: Guard, chats: Sequence[Chat]) -> Array:
    """Return the scores [prompt, detector].

    Raises:
        DataError: One was not scored.
    """
    found = []
    for reply in guard.replies(chats, SCORE_ONLY):
        row = [verdict.score for verdict in reply.verdicts]
        if None in row:
            raise DataError(f"a prompt was not scored: {reply.error}")
        found.append(row)
    return np.array(found, dtype=float)


def _candidates(engine: Engine, of: Candidates) -> Iterator[Chat]:
    """Yield single questions in random order, unsafe and safe ones in turn."""
    examples = [*starter.load(), *written.load()]
    order = np.random.default_rng(of.seed).permutation(len(examples))
    by_label: dict[str, list[Chat]] = {"safe": [], "unsafe": []}
    for index in order:
        example = examples[index]
        if example.label is not None and len(example.chat.messages) == 1:
            by_label[example.label].append(example.chat)
    for pair in zip(*by_label.values(), strict=False):
        for chat in pair:
            asked = Chat.from_text(chat.last_user_text, system=of.system)
            if _fits(engine, asked, of.most_tokens):
                yield asked


def _fits(engine: Engine, chat: Chat, most_tokens: int) -> bool:
    try:
        return len(engine.render(chat)) <= most_tokens
    except DataError:  # longer than the context
        return False

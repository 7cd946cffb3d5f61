"""A growing reply has the scores of the text so far; whole replies are what rates are kept on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pytest

from demur.core.errors import CapabilityError, ConfigError, DataError, NotFittedError
from demur.core.examples import Example
from demur.core.protocols import Detector, Stream, StreamingDetector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read, of_reply
from demur.core.streaming import require_streaming, token_read
from demur.core.types import Chat
from demur.detectors.linear import Linear
from demur.detectors.mlp import Mlp
from demur.workflows.fit import fit
from demur.workflows.reply_scores import (
    ROWS_TOGETHER,
    highest_scores,
    streamed_scores,
)
from tests.guards import targets_of

D_MODEL = 6
MEAN = of_reply(Linear.default_reads(4, layers=(0, 2)))
LAST = (CaptureSpec((0, 2)),)
EACH_TOKEN = CaptureSpec((0, 2), positions="reply")


def replies(lengths: Sequence[int], *, seed: int = 0) -> tuple[Array, ...]:
    """Return states [layer, token, d_model] of replies."""
    generator = np.random.default_rng(seed)
    return tuple(
        generator.normal(5.0, 3.0, (2, length, D_MODEL)).astype(np.float32) for length in lengths
    )


def pooled(states: Array, reads: tuple[Read, ...]) -> Readings:
    """Return what a detector reads of one text with these states."""
    found = states[:, -1] if reads == LAST else states.astype(np.float64).mean(1)
    return Readings({reads[0]: found[None].astype(np.float32)})


def fitted(reads: tuple[Read, ...]) -> Linear:
    states = np.random.default_rng(1).normal(5.0, 3.0, (40, 2, D_MODEL)).astype(np.float32)
    unsafe = states[:, 0, 0] > 5
    detector = Linear(reads, c=1.0, watches="reply")
    return detector.fit(Readings({reads[0]: states}), targets_of(unsafe), seed=0)


@pytest.mark.parametrize("reads", [MEAN, LAST], ids=["mean", "last"])
def test_streamed_scores_are_those_of_every_text_so_far(reads: tuple[Read, ...]) -> None:
    detector, states = fitted(reads), replies([1, 9, 4])
    found = streamed_scores(detector, Readings({token_read(detector): states}))
    for of_reply_, scores in zip(states, found, strict=True):
        expected = [
            detector.decision_function(pooled(of_reply_[:, : token + 1], reads))[0]
            for token in range(len(scores))
        ]
        assert len(scores) == of_reply_.shape[1]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_replys_scores_do_not_depend_on_its_neighbours() -> None:
    detector = fitted(MEAN)
    states = replies(np.random.default_rng(3).integers(1, 12, 2 * ROWS_TOGETHER + 5).tolist())
    together = streamed_scores(detector, Readings({EACH_TOKEN: states}))
    for row, scores in enumerate(together):
        (alone,) = streamed_scores(detector, Readings({EACH_TOKEN: (states[row],)}))
        np.testing.assert_array_equal(scores, alone)


def test_rows_leave_and_join_a_running_batch() -> None:
    detector, (states,) = fitted(MEAN), replies([5])
    state, _ = detector.update(detector.start(3), np.stack([states[:, 0]] * 3))
    left = {name: array[[1]] for name, array in state.items()}
    joined = {name: np.concatenate([left[name], new]) for name, new in detector.start(1).items()}
    _, scores = detector.update(joined, np.stack([states[:, 1], states[:, 1]]))
    first_two = detector.decision_function(pooled(states[:, :2], MEAN))
    second = detector.decision_function(pooled(states[:, 1:2], MEAN))
    np.testing.assert_allclose(scores, [first_two[0], second[0]], atol=1e-5)


def test_an_update_leaves_the_state_that_it_was_given() -> None:
    detector, (states,) = fitted(MEAN), replies([2])
    state = detector.start(1)
    detector.update(state, states[None, :, 0])
    assert {name: array.tolist() for name, array in state.items()} == {
        name: array.tolist() for name, array in detector.start(1).items()
    }


def test_a_token_that_is_not_finite_is_not_scored() -> None:
    detector, (states,) = fitted(MEAN), replies([1])
    states[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="finite"):
        detector.update(detector.start(1), states[None, :, 0])


def test_an_unfitted_detector_scores_no_token() -> None:
    detector, (states,) = Linear(MEAN), replies([1])
    with pytest.raises(NotFittedError):
        detector.update(detector.start(1), states[None, :, 0])


def test_pooled_states_cannot_be_streamed() -> None:
    detector = fitted(MEAN)
    readings = Readings({MEAN[0]: np.zeros((1, 2, D_MODEL), np.float32)})
    with pytest.raises(CapabilityError, match="positions='reply'"):
        streamed_scores(detector, readings)


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (Mlp(MEAN), "Mlp cannot score a reply while it grows"),
        (Linear((*MEAN, *LAST)), "expected one capture"),
        (
            Linear((CaptureSpec((0,), positions="reply", pool="max"),)),
            "of the last token or a mean over tokens",
        ),
    ],
    ids=["not streaming", "two reads", "maximum"],
)
def test_a_detector_that_cannot_be_streamed_is_refused(detector: Detector, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_streaming(detector)


@dataclass
class Echo(StreamingDetector):
    """Takes each token's one number as the score of the text so far."""

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        return (CaptureSpec((0,), positions="reply"),)

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        return self

    def decision_function(self, readings: Readings) -> Array:
        states = readings.ragged(token_read(self))
        return np.array([of_reply_[0, -1, 0] for of_reply_ in states], np.float64)

    def start(self, num_rows: int) -> dict[str, Array]:
        return {"seen": np.zeros(num_rows)}

    def update(self, state: dict[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        return {"seen": state["seen"] + 1}, states[:, 0, 0].astype(np.float64)

    def state(self) -> dict[str, Array]:
        return {"nothing": np.zeros(1)}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        return self


def echoed(scores: Sequence[Sequence[float]]) -> Readings:
    """Return replies whose tokens have these scores."""
    read = Echo.default_reads(1)[0]
    return Readings({read: tuple(np.array(row, np.float32)[None, :, None] for row in scores)})


def test_the_highest_score_of_a_reply_is_the_one_that_would_stop_it() -> None:
    readings = echoed([[0.5, 2.0, 1.0], [3.0], [-1.0, -4.0]])
    detector = Echo(Echo.default_reads(1), watches="reply")
    assert highest_scores(detector, readings).tolist() == [2.0, 3.0, -1.0]


def planted(num_replies: int, *, seed: int) -> tuple[list[Example], list[list[float]]]:
    """Return replies whose last token says nothing, and whose highest score tells the label."""
    generator = np.random.default_rng(seed)
    examples, scores = [], []
    for number in range(num_replies):
        label = "unsafe" if number % 2 else "safe"
        chat = Chat.from_text(f"question {seed} {number}")
        examples.append(Example(str(number), chat, label, response="words"))  # type: ignore[arg-type]
        of_tokens = generator.normal(0.0, 1.0, generator.integers(2, 30))
        of_tokens[generator.integers(len(of_tokens) - 1)] += 6.0 * (number % 2)
        scores.append([*of_tokens[:-1].tolist(), -9.0])
    return examples, scores


def test_replies_are_calibrated_on_the_highest_score_that_they_ever_have() -> None:
    known: dict[str, list[float]] = {}
    parts = []
    for seed in (1, 2):
        examples, scores = planted(400, seed=seed)
        parts.append(examples)
        known |= {
            str(example.chat): of_tokens
            for example, of_tokens in zip(examples, scores, strict=True)
        }

    def capture(examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        rows = [known[str(example.chat)] for example in examples]
        half = len(rows) // 2
        yield np.arange(half, len(rows)), echoed(rows[half:])
        yield np.arange(half), echoed(rows[:half])

    fitted_ = fit(
        Echo(Echo.default_reads(1), watches="reply"),
        *parts,
        capture=capture,
        fpr=0.05,
        calibrated_on="planted scores",
        seed=0,
    )
    highest = np.array([max(known[str(example.chat)]) for example in parts[1]], np.float32)
    np.testing.assert_array_equal(fitted_.scores, highest)
    threshold = fitted_.calibration.at(0.05).threshold
    ever_stopped = [
        bool((np.array(known[str(example.chat)], np.float32) >= threshold).any())
        for example in parts[1]
        if example.label == "safe"
    ]
    assert 0 < np.mean(ever_stopped) <= 0.05
    assert fitted_.metrics["val_auroc"] > 0.99


def test_validation_replies_are_followed_by_token_and_training_ones_are_pooled() -> None:
    examples, _ = planted(240, seed=1)
    asked: list[tuple[str, list[Read]]] = []

    def unsafe(examples: Sequence[Example]) -> Array:
        return np.array([example.label == "unsafe" for example in examples], np.float32)

    def capture(examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        asked.append(("kept", list(reads)))
        means = np.repeat(unsafe(examples)[:, None, None], D_MODEL, axis=2)
        return [(np.arange(len(examples)), Readings({reads[0]: means}))]

    def follow(examples: Sequence[Example], reads: Sequence[Read]) -> Stream:
        asked.append(("passing", list(reads)))
        states = tuple(np.full((1, 3, D_MODEL), label) for label in unsafe(examples))
        return [(np.arange(len(examples)), Readings({reads[0]: states}))]

    fit(
        Linear(MEAN_OF_ONE, watches="reply"),
        examples[:100],
        examples[100:],
        capture=capture,
        follow=follow,
        fpr=0.05,
        calibrated_on="planted scores",
        seed=0,
    )
    assert asked == [
        ("kept", list(MEAN_OF_ONE)),
        ("passing", [CaptureSpec((0,), positions="reply")]),
    ]


MEAN_OF_ONE = of_reply(Linear.default_reads(4, layers=(0,)))


def test_a_detector_that_cannot_stream_is_not_fitted_to_replies() -> None:
    examples, _ = planted(4, seed=0)
    with pytest.raises(ConfigError, match="Mlp cannot score a reply while it grows"):
        fit(
            Mlp(MEAN, watches="reply"),
            examples,
            examples,
            capture=lambda examples, reads: [],
            fpr=0.05,
            calibrated_on="",
            seed=0,
        )

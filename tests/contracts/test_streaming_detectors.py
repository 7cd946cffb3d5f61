"""What every detector promises that can score a text while it grows."""

from functools import cache

import numpy as np
import pytest

from demur.core import registry
from demur.core.errors import DataError, NotFittedError
from demur.core.protocols import StreamingDetector
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, of_reply
from demur.engines.fake import FakeEngine
from tests.guards import marked_texts, read_texts, targets_of

NUM_BLOCKS = 4


def by_token(name: str) -> StreamingDetector | None:
    """Return a new detector that reads each token; None if the method cannot, or cannot stream."""
    method = registry.load("detectors", name)
    if not issubclass(method, StreamingDetector):
        return None
    reads = method.default_reads(NUM_BLOCKS)
    if len(reads) > 1 or not isinstance(reads[0], CaptureSpec) or reads[0].is_pooled:
        return None
    detector: StreamingDetector = method(reads)
    return detector


METHODS = [
    name
    for name in registry.methods("detectors")
    if name != "sentence_embedding" and by_token(name) is not None
]


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@cache
def fitted(name: str) -> StreamingDetector:
    detector = by_token(name)
    assert detector is not None
    texts, unsafe = marked_texts(60)
    readings = read_texts(engine(), detector.reads, texts)
    detector.fit(readings, targets_of(unsafe), seed=0)
    return detector


def engine() -> FakeEngine:
    return FakeEngine(num_layers=NUM_BLOCKS, strength=4.0)


def longer_texts(detector: StreamingDetector) -> list[Array]:
    """Return states [layer, token, d_model] of texts of different length."""
    texts = [("Tell me of MARKER. " * n)[:-1] + " And so on." * (6 - n) for n in range(1, 6)]
    (read,) = detector.reads
    assert isinstance(read, CaptureSpec)
    return list(read_texts(engine(), (read,), texts).ragged(read))


def whole_scores(detector: StreamingDetector, texts: list[Array]) -> Array:
    return detector.decision_function(Readings({detector.reads[0]: tuple(texts)}))


def test_there_are_methods_that_score_a_text_by_token() -> None:
    assert {"token_linear", "rolling"} <= set(METHODS)


def test_after_each_token_the_scores_are_those_of_the_text_so_far(name: str) -> None:
    detector = fitted(name)
    texts = longer_texts(detector)
    num_tokens = min(text.shape[1] for text in texts)
    state = detector.start(len(texts))
    for end in range(1, num_tokens + 1):
        new = np.stack([text[:, end - 1] for text in texts])
        state, scores = detector.update(state, new)
        expected = whole_scores(detector, [text[:, :end] for text in texts])
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert num_tokens > 20


def test_rows_join_and_leave_without_changing_the_others(name: str) -> None:
    detector = fitted(name)
    first, second, third = longer_texts(detector)[:3]
    state, _ = detector.update(detector.start(2), np.stack([first[:, 0], second[:, 0]]))
    state, _ = detector.update(state, np.stack([first[:, 1], second[:, 1]]))
    # The first one leaves, and the third one begins while the second goes on.
    joined = detector.start(1)
    state = {key: np.concatenate([array[1:], joined[key]]) for key, array in state.items()}
    for step in range(15):
        state, scores = detector.update(state, np.stack([second[:, step + 2], third[:, step]]))
    expected = whole_scores(detector, [second[:, :17], third[:, :15]])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_a_row_scores_alike_whatever_its_neighbours(name: str) -> None:
    detector = fitted(name)
    texts = longer_texts(detector)
    together, alone = detector.start(len(texts)), detector.start(1)
    for step in range(18):
        new = np.stack([text[:, step] for text in texts])
        together, scores = detector.update(together, new)
        alone, score = detector.update(alone, new[2:3])
        np.testing.assert_array_equal(scores[2:3], score)


def test_an_update_leaves_the_state_given_as_it_was(name: str) -> None:
    detector = fitted(name)
    text = longer_texts(detector)[0]
    state = detector.start(1)
    for step in range(18):
        before = {key: array.copy() for key, array in state.items()}
        new, _ = detector.update(state, text[None, :, step])
        for key, array in before.items():
            np.testing.assert_array_equal(state[key], array)
        state = new


def test_there_is_one_float64_score_a_row(name: str) -> None:
    detector = fitted(name)
    new = np.stack([text[:, 0] for text in longer_texts(detector)])
    _, scores = detector.update(detector.start(len(new)), new)
    assert scores.shape == (len(new),)
    assert scores.dtype == np.float64


def test_a_token_that_is_not_finite_or_of_another_model_is_refused(name: str) -> None:
    detector = fitted(name)
    new = np.stack([text[:, 0] for text in longer_texts(detector)])
    with pytest.raises(DataError, match="shape"):
        detector.update(detector.start(len(new)), new[:, :, :8])
    new[1, 0, 3] = np.nan
    with pytest.raises(DataError, match="finite"):
        detector.update(detector.start(len(new)), new)


def test_an_unfitted_detector_scores_no_token(name: str) -> None:
    detector = by_token(name)
    assert detector is not None
    new = np.stack([text[:, 0] for text in longer_texts(detector)])
    with pytest.raises(NotFittedError):
        detector.update(detector.start(len(new)), new)


def test_the_tokens_of_a_reply_can_be_read_instead(name: str) -> None:
    detector = by_token(name)
    assert detector is not None
    watching = type(detector)(of_reply(detector.reads), watches="reply")
    assert watching.hyper_parameters()["watches"] == "reply"

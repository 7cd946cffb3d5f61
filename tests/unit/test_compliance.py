"""`compliance` learns from unsafe prompts with a known outcome, and reads a reply that is begun."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Deferred, Readings
from demur.core.reads import CaptureSpec, OwnPass, PilotTokens, Read
from demur.core.types import Chat
from demur.detectors.compliance import Compliance
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import fitted_linear, read_texts
from tests.tiny import tiny

NUM_PROMPTS, D_MODEL = 120, 6
AFTER_THREE = PilotTokens(3, (-1,), "final_norm")


def outcomes() -> Array:
    """Return who complied: a third of the prompts is not known."""
    complied = np.arange(NUM_PROMPTS) % 2.0
    complied[::3] = np.nan
    return complied


def targets(complied: Array | None = None, *, unsafe: Array | None = None) -> Targets:
    rows = np.arange(NUM_PROMPTS)
    return Targets(
        unsafe=rows % 5 != 0 if unsafe is None else unsafe,
        group=rows,
        source=np.where(rows < 30, "a", "b"),
        complied=outcomes() if complied is None else complied,
    )


def states() -> Array:
    """Return states [prompt, layer, d_model] in which those who comply lie apart."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((NUM_PROMPTS, 1, D_MODEL)) * [1, 9, 0.1, 3, 5, 2] + 20
    noise[np.arange(NUM_PROMPTS) % 2 == 1, :, 1] += 20
    return noise.astype(np.float32)


def learnt() -> Array:
    """Return the rows that a fit may learn from."""
    of: Targets = targets()
    return np.flatnonzero(of.unsafe & np.isfinite(outcomes()))


def fitted(**fields: Any) -> tuple[Compliance, Readings]:
    detector = Compliance((), **fields)
    readings = Readings({detector.reads[0]: states()})
    return detector.fit(readings, targets(), seed=0), readings


def unscaled(detector: Compliance, readings: Readings) -> Array:
    """Return scores as they were fitted, before they became log-odds."""
    slope, intercept = detector.state()["odds"].tolist()
    found: Array = (detector.decision_function(readings) - intercept) / slope
    return found


def standardised() -> Array:
    rows = states().reshape(NUM_PROMPTS, -1).astype(np.float64)
    scaled: Array = (rows - rows[learnt()].mean(0)) / rows[learnt()].std(0)
    return scaled


def test_the_regression_is_that_of_scikit_learn_on_known_unsafe_prompts_alone() -> None:
    detector, readings = fitted(c=0.3)
    complied = outcomes()[learnt()]
    weights = np.where(complied == 1, 0.5 / complied.mean(), 0.5 / (1 - complied.mean()))
    expected = LogisticRegression(C=0.3, tol=1e-8, max_iter=1000).fit(
        standardised()[learnt()], complied, sample_weight=weights
    )
    np.testing.assert_allclose(
        unscaled(detector, readings), expected.decision_function(standardised()), atol=1e-3
    )


def test_the_perceptron_is_that_of_scikit_learn() -> None:
    detector, readings = fitted(head="mlp", hidden=8, epochs=7)
    complied = outcomes()[learnt()]
    weights = np.where(complied == 1, 0.5 / complied.mean(), 0.5 / (1 - complied.mean()))
    expected = MLPClassifier(
        (8,), alpha=1e-2, batch_size=32, max_iter=7, n_iter_no_change=7, random_state=0
    )
    with pytest.warns(UserWarning, match="hasn't converged"):
        expected.fit(standardised()[learnt()].astype(np.float32), complied == 1, weights)
    odds = expected.predict_proba(standardised().astype(np.float32))
    np.testing.assert_allclose(
        unscaled(detector, readings), np.log(odds[:, 1] / odds[:, 0]), atol=1e-3
    )


@pytest.mark.parametrize("fields", [{"c": 1e-4}, {"c": 10.0}, {"head": "mlp", "epochs": 3}])
def test_scores_are_log_odds_however_strong_the_penalty_is(fields: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    complied = np.arange(2000) % 2.0
    drawn = generator.standard_normal((2000, 1, 20)) + 0.4 * complied[:, None, None]
    rows = np.arange(1000)
    of = Targets(rows < 998, rows, np.zeros(1000, int), complied=complied[:1000])
    detector = Compliance((), **fields)
    detector.fit(Readings({AFTER_THREE: drawn[:1000].astype(np.float32)}), of, seed=0)
    found = detector.decision_function(Readings({AFTER_THREE: drawn[1000:].astype(np.float32)}))
    truth = (0.4 * drawn[1000:, 0].sum(1) - 20 * 0.4**2 / 2).reshape(-1)
    slope, bias = np.polyfit(truth, found, 1)
    assert slope == pytest.approx(1.0, abs=0.2)
    assert bias == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("fields", [{}, {"head": "mlp", "lr": 1e-2}])
def test_outcomes_are_told_apart_on_prompts_that_nothing_was_learnt_from(
    fields: dict[str, Any],
) -> None:
    detector, readings = fitted(**fields)
    scores = detector.decision_function(readings)
    others = np.setdiff1d(np.arange(NUM_PROMPTS), learnt())
    assert roc_auc_score(others % 2, scores[others]) > 0.85


def test_safe_prompts_and_unknown_outcomes_have_no_say() -> None:
    detector, readings = fitted()
    others = np.setdiff1d(np.arange(NUM_PROMPTS), learnt())
    changed = states()
    changed[others] = 1e6
    again = Compliance(()).fit(Readings({detector.reads[0]: changed}), targets(), seed=0)
    np.testing.assert_array_equal(
        detector.decision_function(readings), again.decision_function(readings)
    )


class Reader:
    """Keeps which chats were read."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def values_of(self, read: object, chats: Sequence[Chat]) -> Array:
        self.seen += [chat.last_user_text for chat in chats]
        return states()[[int(chat.last_user_text) for chat in chats]]


def test_only_the_prompts_that_it_learns_from_are_read() -> None:
    reader, detector = Reader(), Compliance(())
    chats = tuple(Chat.from_text(str(row)) for row in range(NUM_PROMPTS))
    readings = Readings({AFTER_THREE: Deferred(reader, AFTER_THREE, chats)})
    detector.fit(readings, targets(), seed=0)
    assert reader.seen == [str(row) for row in learnt()]


@pytest.mark.parametrize(
    ("complied", "unsafe", "message"),
    [
        (None, np.arange(NUM_PROMPTS) % 2 == 1, "40 are known to be complied with and 0 to be re"),
        (np.zeros(NUM_PROMPTS), None, "0 are known to be complied with and 96 to be refused"),
        (np.full(NUM_PROMPTS, np.nan), None, "of 96 unsafe prompts 0 are known .* `demur label`"),
    ],
)
def test_one_outcome_alone_teaches_nothing(
    complied: Array | None, unsafe: Array | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Compliance(()).fit(
            Readings({AFTER_THREE: states()}), targets(complied, unsafe=unsafe), seed=0
        )


def test_without_any_outcome_nothing_is_learnt() -> None:
    rows = np.arange(NUM_PROMPTS)
    plain = Targets(rows % 2 == 0, rows, np.zeros(NUM_PROMPTS, int))
    with pytest.raises(DataError, match="label the model's own replies"):
        Compliance(()).fit(Readings({AFTER_THREE: states()}), plain, seed=0)


@pytest.mark.parametrize(
    ("given", "num_tokens", "expected"),
    [
        ((), 3, AFTER_THREE),
        ((), 5, PilotTokens(5, (-1,), "final_norm")),
        ((), 0, CaptureSpec((-1,), site="final_norm")),
        ((CaptureSpec((4, 7)),), 2, PilotTokens(2, (4, 7))),
        ((PilotTokens(9, (4,)),), 0, CaptureSpec((4,))),
    ],
)
def test_where_it_reads_follows_from_the_number_of_tokens(
    given: tuple[Read, ...], num_tokens: int, expected: Read
) -> None:
    detector = Compliance(given, num_tokens=num_tokens)
    assert detector.reads == (expected,)
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert Compliance.from_hyper_parameters(fields) == detector


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "tree"}, "head is 'tree'"),
        ({"num_tokens": -1}, "num_tokens is -1"),
        ({"hidden": 0}, "hidden is 0"),
        ({"c": 0.0}, r"c is 0\.0"),
        ({"alpha": -1.0}, r"alpha is -1\.0"),
        ({"reads": (CaptureSpec((1,)), CaptureSpec((2,)))}, "expected one read of states"),
        ({"reads": (OwnPass("self", "prompted:0", (("a",), ("b",))),)}, "expected one read of"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compliance(**{"reads": (), **fields})


@pytest.mark.parametrize(
    "state",
    [
        {"weights": np.zeros((2, 2)), "bias": np.zeros(1), "odds": np.ones(2)},
        {"weights": np.zeros(2), "bias": np.zeros(1)},
        {"weights": np.zeros(2), "bias": np.zeros(1), "odds": np.array([np.nan, 0.0])},
        {"weights": np.array([np.nan]), "bias": np.zeros(1), "odds": np.ones(2)},
    ],
)
def test_a_state_of_something_else_is_refused(state: dict[str, Array]) -> None:
    with pytest.raises(DataError):
        Compliance(()).load_state(state)


def test_in_a_guard_it_begins_the_reply_and_leaves_it_as_it_was() -> None:
    engine = TransformersEngine(tiny())
    texts = [f"Tell me of fox number {number}." for number in range(12)]
    detector = Compliance((), num_tokens=2)
    readings = read_texts(engine, detector.reads, texts)
    rows = np.arange(12)
    detector.fit(readings, Targets(rows > 0, rows, rows, complied=rows % 2.0), seed=0)
    calibrated = CalibratedDetector("compliance", detector, 1e9, 1.0, 0.0, "test")
    guard = Guard(
        engine,
        [calibrated],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    reply = guard.reply(texts[3])
    scores = detector.decision_function(readings)
    assert reply.verdicts[0].score == pytest.approx(float(scores[3]), abs=1e-5)
    plain = Guard(
        engine,
        [CalibratedDetector("linear", fitted_linear(engine), 1e9, 1.0, 0.0, "test")],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    assert reply.token_ids == plain.reply(texts[3]).token_ids

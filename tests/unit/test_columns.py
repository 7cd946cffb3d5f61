"""Read-outs as columns: what a model adds up token by token scores as the states would."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt, Span
from demur.engines._columns import Columns, PrefillScores, spans_of
from demur.engines._stored_columns import store, stored

NUM_BLOCKS, D_MODEL, NUM_TOKENS = 4, 6, 20
LAST = CaptureSpec((1, -1))
USER = CaptureSpec((1, 2), positions="user", normalise="rms", pool="mean")
PROMPT = Prompt(
    Chat.from_text("hello"),
    tuple(range(NUM_TOKENS)),
    (Span("user", 2, 5), Span("user", 7, 15), Span("generation_prompt", 17, 20)),
)
RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(size=(NUM_BLOCKS, NUM_TOKENS, D_MODEL)).astype(np.float32)


def readout(seed: int, *specs: CaptureSpec) -> LinearReadout:
    random = np.random.default_rng(seed)
    weights = {
        spec: random.normal(size=(len(spec.layers), D_MODEL)).astype(np.float32) for spec in specs
    }
    return LinearReadout(weights, float(random.normal()))


READOUTS = (readout(1, LAST, USER), readout(2, USER), readout(3, LAST))
COLUMNS = Columns.of(READOUTS, num_blocks=NUM_BLOCKS)
TURNS = [(span.start, span.stop) for span in PROMPT.spans_of("user")]
SPANS = [spans_of(column.spec, len(PROMPT), TURNS) for column in COLUMNS.columns]


def products() -> Array:
    """Return what the taps of a model would give: [token, column]."""
    total = np.zeros((NUM_TOKENS, len(COLUMNS)))
    for layer in COLUMNS.layers:
        found = STATES[layer] @ COLUMNS.weights_at(layer)
        size = np.sqrt((STATES[layer] ** 2).mean(-1, keepdims=True))
        total += np.where(COLUMNS.is_rms, found / size, found)
    return total


def true_readings() -> Readings:
    last = np.stack([STATES[1, -1], STATES[3, -1]])
    unit = STATES / np.sqrt((STATES**2).mean(-1, keepdims=True))
    user = unit[1:3, 7:15].mean(1)
    return Readings({LAST: last[None], USER: user[None]})


def test_detectors_score_the_state_of_least_norm_as_the_true_one() -> None:
    scores = PrefillScores(NUM_TOKENS, SPANS)
    assert scores.add(0, products())
    values = scores.values()
    seen = Readings({spec: COLUMNS.state(spec, values)[None] for spec in (LAST, USER)})
    for of in READOUTS:
        assert of.score(seen) == pytest.approx(of.score(true_readings()), rel=1e-5, abs=1e-5)


def test_the_state_of_least_norm_lies_in_the_span_of_the_weights() -> None:
    state = COLUMNS.state(LAST, np.arange(1.0, len(COLUMNS) + 1)).reshape(-1)
    weights = np.stack([of.weights[LAST].reshape(-1) for of in (READOUTS[0], READOUTS[2])])
    left = np.linalg.lstsq(weights.T, state, rcond=None)[1]
    assert left == pytest.approx([0], abs=1e-8)


@pytest.mark.parametrize("cuts", [(5,), (3, 8, 14), tuple(range(1, NUM_TOKENS))])
def test_a_prompt_in_chunks_has_the_values_of_the_whole_one(cuts: tuple[int, ...]) -> None:
    whole, parts = PrefillScores(NUM_TOKENS, SPANS), PrefillScores(NUM_TOKENS, SPANS)
    whole.add(0, products())
    edges = (0, *cuts, NUM_TOKENS)
    done = [parts.add(start, products()[start:stop]) for start, stop in pairwise(edges)]
    assert done == [False] * len(cuts) + [True]
    np.testing.assert_allclose(parts.values(), whole.values(), rtol=1e-12)


def test_a_prompt_that_is_read_again_from_its_start_is_not_counted_twice() -> None:
    whole, again = PrefillScores(NUM_TOKENS, SPANS), PrefillScores(NUM_TOKENS, SPANS)
    whole.add(0, products())
    again.add(0, products()[:12])
    again.add(0, products())
    np.testing.assert_allclose(again.values(), whole.values(), rtol=1e-12)


def test_tokens_of_the_reply_are_not_counted() -> None:
    whole, longer = PrefillScores(NUM_TOKENS, SPANS), PrefillScores(NUM_TOKENS, SPANS)
    whole.add(0, products())
    assert longer.add(0, np.concatenate([products(), np.full((3, len(COLUMNS)), 1e9)]))
    np.testing.assert_allclose(longer.values(), whole.values(), rtol=1e-12)


def test_a_cached_prefix_leaves_the_last_token_and_refuses_a_mean_over_it() -> None:
    last = [
        spans for spans, column in zip(SPANS, COLUMNS.columns, strict=True) if column.spec == LAST
    ]
    only_last = PrefillScores(NUM_TOKENS, last)
    numbers = [n for n, column in enumerate(COLUMNS.columns) if column.spec == LAST]
    assert only_last.add(16, products()[16:, numbers])
    np.testing.assert_allclose(only_last.values(), products()[-1, numbers], rtol=1e-12)
    pooled = PrefillScores(NUM_TOKENS, SPANS)
    assert pooled.add(8, products()[8:])
    with pytest.raises(DataError, match="prefix cache"):
        pooled.values()


def test_a_prefix_that_ends_before_the_turns_does_no_harm() -> None:
    whole, cached = PrefillScores(NUM_TOKENS, SPANS), PrefillScores(NUM_TOKENS, SPANS)
    whole.add(0, products())
    cached.add(6, products()[6:])
    np.testing.assert_allclose(cached.values(), whole.values(), rtol=1e-12)


def test_a_prompt_that_was_not_read_whole_has_no_score() -> None:
    scores = PrefillScores(NUM_TOKENS, SPANS)
    scores.add(0, products()[:8])
    with pytest.raises(DataError, match="8 of 20 tokens"):
        scores.values()


def test_a_prompt_without_turns_can_be_read_as_one() -> None:
    whole = [(0, NUM_TOKENS)]
    scores = PrefillScores(
        NUM_TOKENS, [spans_of(of.spec, NUM_TOKENS, whole) for of in COLUMNS.columns]
    )
    assert scores.add(0, products())
    means = [of.spec.pool == "mean" for of in COLUMNS.columns]
    expected = np.where(means, products().mean(0), products()[-1])
    np.testing.assert_allclose(scores.values(), expected)


@pytest.mark.parametrize(
    "spec",
    [
        CaptureSpec((1,), positions="user", pool="max"),
        CaptureSpec((1,), positions="reply", pool="mean"),
        CaptureSpec((1,), site="attn_out"),
        CaptureSpec((-1,), site="final_norm"),
    ],
)
def test_a_read_that_no_column_can_hold_is_refused(spec: CaptureSpec) -> None:
    with pytest.raises(CapabilityError, match="inside the model"):
        Columns.of([readout(1, spec)], num_blocks=NUM_BLOCKS)


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="layer 9"):
        Columns.of([readout(1, CaptureSpec((9,)))], num_blocks=NUM_BLOCKS)


def test_a_read_of_no_detector_is_refused() -> None:
    with pytest.raises(CapabilityError, match="other detectors"):
        COLUMNS.state(CaptureSpec((0,)), np.zeros(len(COLUMNS)))


def test_a_value_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DataError, match="not finite"):
        COLUMNS.state(LAST, np.full(len(COLUMNS), np.nan))


def test_a_chat_without_user_text_has_no_turns() -> None:
    with pytest.raises(DataError, match="no user text"):
        spans_of(USER, len(PROMPT), [])


def test_stored_columns_are_the_same_ones(tmp_path: Path) -> None:
    sha256 = store(COLUMNS, tmp_path)
    assert store(COLUMNS, tmp_path) == sha256 == COLUMNS.sha256
    found = stored(sha256, tmp_path)
    assert [column.spec for column in found.columns] == [c.spec for c in COLUMNS.columns]
    for layer in COLUMNS.layers:
        np.testing.assert_array_equal(found.weights_at(layer), COLUMNS.weights_at(layer))


def test_other_weights_have_another_hash() -> None:
    changed = (readout(1, LAST, USER), readout(2, USER), readout(4, LAST))
    assert Columns.of(changed, num_blocks=NUM_BLOCKS).sha256 != COLUMNS.sha256


def test_stored_columns_that_changed_are_refused(tmp_path: Path) -> None:
    other = store(Columns.of(READOUTS[:1], num_blocks=NUM_BLOCKS), tmp_path)
    (tmp_path / f"{other}.safetensors").rename(tmp_path / "0.safetensors")
    with pytest.raises(DataError, match="another hash"):
        stored("0", tmp_path)
    (tmp_path / "0.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(DataError, match="cannot be read"):
        stored("0", tmp_path)
    with pytest.raises(ConfigError, match="DEMUR_CACHE"):
        stored("1", tmp_path)

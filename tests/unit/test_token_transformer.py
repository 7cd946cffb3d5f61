"""`token_transformer` reads every token of a prompt, and neither padding nor neighbours matter."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Texts
from demur.detectors import _token_transformer as network
from demur.detectors._tokens import moments
from demur.detectors.linear import Linear
from demur.detectors.token_transformer import TokenTransformer

ALL, LAST = CaptureSpec((0, 1), positions="all"), CaptureSpec((0, 1))
FIRST, SECOND = CaptureSpec((0,), positions="all"), CaptureSpec((1,), positions="all")
D_MODEL = 8
DIRECTION = np.ones((2, 1, D_MODEL)) / np.sqrt(2 * D_MODEL)
SMALL = network.Shape(2 * D_MODEL, d_hidden=16, num_layers=2, num_heads=4, pool="mean", dropout=0.3)


def planted(num_prompts: int, *, seed: int, strength: float = 8.0) -> tuple[Readings, Array]:
    """Return token states in which one of the first four tokens of unsafe prompts is marked."""
    generator = np.random.default_rng(seed)
    unsafe = np.arange(num_prompts) % 2 == 1
    prompts = []
    for is_unsafe in unsafe:
        states = generator.standard_normal((2, generator.integers(8, 20), D_MODEL))
        marked = generator.integers(4)
        states[:, marked : marked + 1] += strength * DIRECTION * is_unsafe
        prompts.append((30 * states - 90).astype(np.float32))
    return Readings({ALL: tuple(prompts)}), unsafe


def known_of(unsafe: Array) -> Targets:
    return Targets(unsafe, np.arange(len(unsafe)), np.zeros(len(unsafe)))


def small(**fields: object) -> TokenTransformer:
    return TokenTransformer((ALL,), **{"d_hidden": 16, **fields})  # type: ignore[arg-type]


@cache
def fitted() -> TokenTransformer:
    readings, unsafe = planted(40, seed=1)
    return small(max_positions=12).fit(readings, known_of(unsafe), seed=0)


def encoder_of(shape: network.Shape = SMALL) -> network.TokenEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        return network.TokenEncoder(shape).eval()


def tokens_of(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 2 * D_MODEL, generator=generator) for length in lengths]


def test_a_signal_in_an_early_token_is_found_that_the_last_token_does_not_hold() -> None:
    (train, unsafe), (test, is_unsafe) = planted(200, seed=1), planted(100, seed=2)
    detector = TokenTransformer((ALL,), d_hidden=32, epochs=15)
    detector.fit(train, known_of(unsafe), seed=0)
    assert roc_auc_score(is_unsafe, detector.decision_function(test)) > 0.95
    last, asked = (
        Readings({LAST: np.stack([prompt[:, -1] for prompt in readings.ragged(ALL)])})
        for readings in (train, test)
    )
    blind = Linear((LAST,)).fit(last, known_of(unsafe), seed=0)
    assert roc_auc_score(is_unsafe, blind.decision_function(asked)) < 0.65


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_changes_no_score(pool: str) -> None:
    shape = network.Shape(2 * D_MODEL, 16, 2, 4, pool, 0.3)
    encoder, prompts = encoder_of(shape), tokens_of(3, 17, 1, 8)
    tokens, lengths = network.padded(prompts)
    filled = torch.where(tokens == 0, 50.0, tokens)  # whatever stands in the padding
    for training_path in (True, False):  # torch has another, fused path where no gradient is kept
        with torch.set_grad_enabled(training_path):
            together = encoder(filled, lengths).detach().numpy()
        alone = [network.score(encoder, prompt) for prompt in prompts]
        np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)
    assert np.ptp(alone) > 0.05


def test_a_prompt_scores_alike_among_longer_and_shorter_ones() -> None:
    readings, _ = planted(30, seed=2)
    scores = fitted().decision_function(readings)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(fitted().decision_function(readings.take(order)), scores[order])


def test_a_prompt_that_is_too_long_counts_with_its_last_tokens() -> None:
    readings, _ = planted(10, seed=2)
    long = tuple(np.concatenate([prompt * 7, prompt], axis=1) for prompt in readings.ragged(ALL))
    ends = tuple(prompt[:, -12:] for prompt in long)
    scores = fitted().decision_function(Readings({ALL: long}))
    np.testing.assert_array_equal(fitted().decision_function(Readings({ALL: ends})), scores)
    shorter = tuple(prompt[:, -11:] for prompt in long)
    assert np.all(fitted().decision_function(Readings({ALL: shorter})) != scores)


def test_tokens_before_the_last_ones_are_not_trained_on() -> None:
    readings, unsafe = planted(20, seed=1)
    ends = Readings({ALL: tuple(prompt[:, -5:] for prompt in readings.ragged(ALL))})
    whole, cut = (small(max_positions=5, epochs=2) for _ in range(2))
    whole.fit(readings, known_of(unsafe), seed=0)
    cut.fit(ends, known_of(unsafe), seed=0)
    np.testing.assert_array_equal(whole.decision_function(ends), cut.decision_function(ends))


def test_the_order_of_the_tokens_matters() -> None:
    readings, _ = planted(10, seed=2)
    back = Readings({ALL: tuple(prompt[:, ::-1].copy() for prompt in readings.ragged(ALL))})
    detector = small(max_positions=100)
    detector.fit(*_train(), seed=0)
    difference = detector.decision_function(back) - detector.decision_function(readings)
    assert np.abs(difference).min() > 1e-4


def _train() -> tuple[Readings, Targets]:
    readings, unsafe = planted(40, seed=1)
    return readings, known_of(unsafe)


def test_the_loss_falls() -> None:
    readings, unsafe = planted(120, seed=1)
    prompts = [p.swapaxes(0, 1).reshape(p.shape[1], -1) for p in readings.ragged(ALL)]
    mean, scale = moments(prompts)
    _, losses = network.train(
        prompts,
        unsafe,
        np.ones(120),
        shape=SMALL,
        training=network.Training(epochs=12, lr=3e-3, weight_decay=0.01, batch_size=16),
        mean=mean,
        scale=scale,
        seed=0,
    )
    assert len(losses) == 12
    assert losses[0] == pytest.approx(np.log(2), abs=0.15)
    assert losses[-1] < losses[0] / 3


def test_the_loss_of_an_untrained_network_is_weighed_by_prompt() -> None:
    prompts, unsafe = [t.numpy() for t in tokens_of(3, 5, 4)], np.array([True, False, True])
    weights = np.array([2.0, 0.25, 0.75])
    shape = network.Shape(2 * D_MODEL, 16, 1, 4, "mean", 0.0)
    _, (loss,) = network.train(
        prompts,
        unsafe,
        weights,
        shape=shape,
        training=network.Training(epochs=1, lr=1e-3, weight_decay=0.0, batch_size=8),
        mean=np.zeros(2 * D_MODEL),
        scale=np.ones(2 * D_MODEL),
        seed=0,
    )
    encoder = encoder_of(shape)  # the same seed, before the first step
    logits = np.array([network.score(encoder, torch.tensor(prompt)) for prompt in prompts])
    by_hand = np.log1p(np.exp(np.where(unsafe, -logits, logits)))
    assert loss == pytest.approx((weights * by_hand).mean(), abs=1e-5)


def test_moments_are_those_of_all_tokens() -> None:
    prompts = [30 * t.numpy().astype(np.float32) + 1e4 for t in tokens_of(3, 50, 8)]
    prompts = [np.concatenate([p, np.full((len(p), 1), 7, p.dtype)], axis=1) for p in prompts]
    mean, scale = moments(prompts)
    tokens = np.concatenate(prompts).astype(np.float64)
    np.testing.assert_allclose(mean, tokens.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale[:-1], tokens.std(0)[:-1], rtol=1e-9)
    assert scale[-1] == np.inf


@pytest.mark.parametrize("seed", [0, 5])
def test_training_leaves_torchs_generator_alone(seed: int) -> None:
    before = torch.get_rng_state()
    small(epochs=1).fit(*_train(), seed=seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_does_not_depend_on_torchs_generator() -> None:
    readings, known = _train()
    with torch.random.fork_rng(devices=[]):
        first = small(epochs=1).fit(readings, known, seed=0).decision_function(readings)
        torch.rand(3)
        second = small(epochs=1).fit(readings, known, seed=0).decision_function(readings)
    np.testing.assert_array_equal(first, second)


def test_another_seed_gives_other_weights() -> None:
    readings, known = _train()
    first, second = (
        small(epochs=1).fit(readings, known, seed=s).decision_function(readings) for s in (0, 1)
    )
    assert np.all(first != second)


def test_two_reads_are_joined_token_by_token() -> None:
    readings, known = _train()
    prompts = readings.ragged(ALL)
    apart = Readings({FIRST: tuple(p[:1] for p in prompts), SECOND: tuple(p[1:] for p in prompts)})
    two = TokenTransformer((FIRST, SECOND), d_hidden=16, epochs=1).fit(apart, known, seed=0)
    one = small(epochs=1).fit(readings, known, seed=0)
    np.testing.assert_array_equal(two.decision_function(apart), one.decision_function(readings))


def test_reads_of_different_positions_are_refused() -> None:
    readings, known = _train()
    prompts = readings.ragged(ALL)
    apart = Readings(
        {FIRST: tuple(p[:1] for p in prompts), SECOND: tuple(p[1:, 1:] for p in prompts)}
    )
    with pytest.raises(DataError, match="tokens: expected the same"):
        TokenTransformer((FIRST, SECOND)).fit(apart, known, seed=0)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"hold \[0\] tokens"):
        fitted().decision_function(Readings({ALL: (np.zeros((2, 0, D_MODEL), np.float32),)}))


@pytest.mark.parametrize("read", [Texts(), LAST], ids=str)
def test_reads_that_are_pooled_are_refused(read: Texts | CaptureSpec) -> None:
    with pytest.raises(DataError, match="captures by token"):
        TokenTransformer((read,)).fit(*_train(), seed=0)


def test_a_read_that_is_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="a read is given twice"):
        TokenTransformer((ALL, ALL)).fit(*_train(), seed=0)


def test_readings_that_lack_a_read_are_refused() -> None:
    with pytest.raises(CapabilityError, match="do not hold"):
        TokenTransformer((FIRST,)).fit(*_train(), seed=0)


def test_training_prompts_of_different_width_are_refused() -> None:
    readings, known = _train()
    prompts = [*readings.ragged(ALL)[:-1], np.zeros((2, 5, 3), np.float32)]
    with pytest.raises(DataError, match="differ in shape"):
        small().fit(Readings({ALL: tuple(prompts)}), known, seed=0)


def test_a_constant_feature_changes_no_score() -> None:
    readings, known = _train()
    still, moved = (tuple(p.copy() for p in readings.ragged(ALL)) for _ in range(2))
    for prompt in still:
        prompt[1, :, 2] = -3e4
    for prompt in moved:
        prompt[1, :, 2] = 1e3
    detector = small(epochs=1).fit(Readings({ALL: still}), known, seed=0)
    np.testing.assert_array_equal(
        detector.decision_function(Readings({ALL: still})),
        detector.decision_function(Readings({ALL: moved})),
    )


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DataError, match="loss is not finite"):
        small(lr=1e30, epochs=4).fit(*_train(), seed=0)


COUNTS = ("d_hidden", "num_layers", "num_heads", "max_positions", "epochs", "batch_size")


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0: expected 1 or more"):
        TokenTransformer((ALL,), **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("d_hidden", 30), ("dropout", 1.0), ("lr", 0.0), ("weight_decay", -1.0), ("pool", "max")],
)
def test_a_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}: expected"):
        TokenTransformer((ALL,), **{name: value})  # type: ignore[arg-type]


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(ConfigError, match="'topics': expected one of"):
        TokenTransformer((ALL,), balance="topics")  # type: ignore[arg-type]


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit the hyper-parameters"):
        small(d_hidden=32).load_state(fitted().state())


def test_an_array_too_many_is_refused() -> None:
    with pytest.raises(DataError, match="extra has shape"):
        small().load_state({**fitted().state(), "extra": np.zeros(1)})


@pytest.mark.parametrize("name", ["mean", "scale", "encoder.logit.bias"])
def test_a_state_that_is_not_finite_is_refused(name: str) -> None:
    state = fitted().state()
    state[name].flat[-1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        small().load_state(state)


def test_changing_a_state_changes_no_detector() -> None:
    readings, _ = planted(8, seed=2)
    before = fitted().decision_function(readings)
    state = fitted().state()
    restored = small(max_positions=12).load_state(state)
    for array in state.values():
        array[:] = 0
    np.testing.assert_array_equal(fitted().decision_function(readings), before)
    np.testing.assert_array_equal(restored.decision_function(readings), before)


def test_hyper_parameters_and_reads_survive_json() -> None:
    detector = small(pool="last", num_layers=2, max_positions=9, lr=0.1, balance="none")
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert TokenTransformer.from_hyper_parameters(fields) == detector

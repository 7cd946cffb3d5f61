"""Gap curves: all pairs against a plain loop, a planted separation, and what chance gives."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from demur.core.errors import DataError
from demur.core.readings import Array
from demur.modeling.gap_curves import Against, Cosines, Curves, Rise, chance_of, rise_of

NUM_LAYERS, D_MODEL, FIRST = 8, 24, 3
AGAINST: tuple[Against, Against] = ("ordinary", "both")


def planted(
    number: int, *, first: int = FIRST, strength: float = 2.0, seed: int = 0
) -> tuple[Array, Array]:
    """Return states [prompt, layer, d_model] in which unsafe prompts part at a layer, and which."""
    generator = np.random.default_rng(seed)
    is_unsafe = np.arange(2 * number) >= number
    common, direction = generator.normal(size=(2, D_MODEL))
    states = 2 * common + generator.normal(size=(2 * number, NUM_LAYERS, D_MODEL))
    states[is_unsafe, first:] += strength * direction
    return states.astype(np.float32), is_unsafe


def plain(states: Array, pairs: list[tuple[int, int]]) -> Array:
    """Return the mean cosine over pairs, [layer], by a loop."""
    found: Array = np.array(
        [
            np.mean([1 - cosine(states[a, layer], states[b, layer]) for a, b in pairs])
            for layer in range(states.shape[1])
        ]
    )
    return found


def assert_curves(found: Curves, states: Array, is_unsafe: Array, rows: list[int]) -> None:
    safe, unsafe = ([row for row in rows if is_unsafe[row] == of] for of in (False, True))
    pairs = {
        "ordinary": [(a, b) for a, b in combinations(safe, 2) if a != b],
        "unsafe": [(a, b) for a, b in combinations(unsafe, 2) if a != b],
        "mixed": list(product(safe, unsafe)),
    }
    for name, of in pairs.items():
        np.testing.assert_allclose(getattr(found, name), plain(states, of), rtol=1e-5)
    angles = [np.degrees(np.arccos(plain(states, pairs[of]))) for of in ("mixed", "ordinary")]
    np.testing.assert_allclose(found.gap, angles[0] - angles[1], atol=1e-4)


def test_curves_are_the_means_over_all_pairs() -> None:
    states, is_unsafe = planted(5)
    assert_curves(Cosines(states, is_unsafe).curves(), states, is_unsafe, list(range(10)))


def test_against_both_kinds_the_angle_of_like_pairs_is_their_mean() -> None:
    states, is_unsafe = planted(5)
    plainly, both = (Cosines(states, is_unsafe, against=of).curves() for of in AGAINST)
    angles = [np.degrees(np.arccos(of)) for of in (both.mixed, both.ordinary, both.unsafe)]
    np.testing.assert_allclose(both.gap, angles[0] - (angles[1] + angles[2]) / 2)
    np.testing.assert_allclose(plainly.gap, angles[0] - angles[1])


def test_against_both_kinds_a_gap_is_found_where_ordinary_prompts_are_more_varied() -> None:
    states, is_unsafe = planted(40, first=2, strength=1.0)
    states[~is_unsafe] += 2 * np.random.default_rng(3).normal(size=states[~is_unsafe].shape)
    plainly, both = (Cosines(states, is_unsafe, against=of) for of in AGAINST)
    assert plainly.curves().gap.max() < 0
    shuffled = np.stack([of.gap for of in both.permuted(99, seed=0)])
    assert chance_of(both.curves().gap, shuffled) == 0.01


def test_a_prompt_that_is_drawn_twice_makes_no_pair_with_itself() -> None:
    states, is_unsafe = planted(4)
    rows = [0, 0, 1, 3, 4, 5, 5, 5]
    found = Cosines(states, is_unsafe).curves(np.array(rows))
    assert_curves(found, states, is_unsafe, rows)


def test_centred_curves_are_those_of_states_without_their_mean() -> None:
    states, is_unsafe = planted(5)
    found = Cosines(states, is_unsafe, is_centred=True).curves()
    assert_curves(found, states - states.mean(0), is_unsafe, list(range(10)))


@pytest.mark.parametrize("first", [1, 3, 6])
def test_a_planted_separation_is_found_at_its_layer(first: int) -> None:
    curves = Cosines(*planted(30, first=first)).curves()
    rise = rise_of(curves.gap)
    assert rise is not None
    assert (rise.first, rise.last) == (first, first)
    assert np.abs(curves.gap[:first]).max() < 3
    assert curves.gap[first:].min() > 8
    assert curves.slope.argmax() == first


def test_shuffled_labels_give_a_gap_about_zero() -> None:
    states, is_unsafe = planted(60)
    cosines = Cosines(states, is_unsafe)
    gaps = np.stack([of.gap for of in cosines.permuted(200, seed=0)])
    assert np.abs(gaps.mean(0)).max() < 0.5
    assert gaps.max() < cosines.curves().gap[FIRST:].min() / 4


def test_without_a_separation_the_gap_lies_within_what_chance_gives() -> None:
    is_over = []
    for seed in range(20):
        cosines = Cosines(*planted(15, strength=0.0, seed=seed))
        largest = [of.gap.max() for of in cosines.permuted(100, seed=seed)]
        is_over.append(cosines.curves().gap.max() > np.quantile(largest, 0.95))
    assert sum(is_over) <= 4  # 5% of 20, and what a binomial draw adds in 99 of 100


def test_shuffles_are_those_of_their_seed() -> None:
    cosines = Cosines(*planted(6))
    first, again, other = (
        np.stack([of.gap for of in cosines.permuted(3, seed=seed)]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0, 0, 0, 5, 5, 5], Rise(3, 3, 5.0)),
        ([1, 1, 2, 3, 4, 4], Rise(2, 4, 3.0)),
        ([0, 1], Rise(1, 1, 1.0)),
        ([5, 5, 5, 0, 0], None),
        ([2, 2, 2], None),
        ([7], None),
    ],
)
def test_a_rise_is_where_a_curve_grows(curve: list[float], expected: Rise | None) -> None:
    found = rise_of(np.array(curve, float))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.first, found.last) == (expected.first, expected.last)
        assert found.growth == pytest.approx(expected.growth)


def test_a_rise_is_found_under_noise() -> None:
    curve = np.interp(np.arange(24), [7, 12], [0, 20])
    noise = np.random.default_rng(0).normal(scale=0.5, size=24)
    found = rise_of(curve + noise)
    assert found is not None
    assert abs(found.first - 8) <= 1
    assert abs(found.last - 12) <= 1


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (0, 4)])
def test_too_few_prompts_of_a_label_are_refused(counts: tuple[int, int]) -> None:
    is_unsafe = np.repeat([False, True], counts)
    with pytest.raises(DataError, match="expected 2 of each or more"):
        Cosines(np.ones((len(is_unsafe), 2, 3)), is_unsafe)


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_states_that_have_no_direction_are_refused(broken: float) -> None:
    states, is_unsafe = planted(3)
    states[1, 2] = broken
    with pytest.raises(DataError, match="zero or not finite"):
        Cosines(states, is_unsafe)


def test_a_draw_without_two_prompts_of_a_label_is_refused() -> None:
    with pytest.raises(DataError, match="no two different prompts"):
        Cosines(*planted(3)).curves(np.array([0, 0, 0, 3, 4]))

"""Ranges of blocks: how they are named, searched, and drawn at random."""

import pytest

from demur.core.errors import ConfigError
from demur.modeling.block_search import Range, first_guess, narrow, random_ranges
from demur.modeling.gap_curves import Rise

PUBLISHED = {
    (9, 12): 187, (9, 13): 222, (9, 14): 237, (9, 15): 213, (9, 16): 219,
    (8, 14): 263, (7, 14): 268, (6, 14): 287, (5, 14): 189, (4, 14): 202,
}  # fmt: skip
"""Refusals of Llama-2-7b-chat on 721 look-alikes, by the range that was scaled."""


def published(of: Range) -> float:
    return PUBLISHED.get((of.first, of.last), 0)


def test_the_published_counts_lead_to_the_published_range() -> None:
    found = narrow(Range(9, 12), num_blocks=32, reach=5, count=published)
    assert found.chosen == Range(6, 14)
    assert found.counts[Range(9, 14)] == 237


def test_a_search_begins_where_the_gap_grows_or_in_the_middle() -> None:
    assert first_guess(Rise(9, 12, 30.0), num_blocks=32) == Range(9, 12)
    assert first_guess(None, num_blocks=9) == Range(3, 5)
    assert first_guess(None, num_blocks=1) == Range(0, 0)


def test_each_range_is_counted_once_and_stays_within_reach() -> None:
    seen: list[Range] = []

    def count(of: Range) -> float:
        seen.append(of)
        return float(of.width)

    found = narrow(Range(2, 3), num_blocks=6, reach=2, count=count)
    assert found.chosen == Range(0, 5)
    assert len(seen) == len(set(seen))
    assert list(found.counts) == seen
    assert seen[0] == Range(2, 3)
    assert all(0 <= of.first <= of.last <= 5 for of in seen)


def test_of_ranges_that_count_alike_the_first_guess_stays() -> None:
    found = narrow(Range(3, 4), num_blocks=8, reach=3, count=lambda _: 1.0)
    assert found.chosen == Range(3, 4)


def test_a_lower_end_never_passes_the_upper_one() -> None:
    found = narrow(Range(3, 3), num_blocks=8, reach=4, count=lambda of: -abs(of.first - 7))
    assert found.chosen.first <= found.chosen.last


@pytest.mark.parametrize(("start", "reach"), [(Range(3, 8), 1), (Range(0, 1), -1)])
def test_a_search_outside_the_model_is_refused(start: Range, reach: int) -> None:
    with pytest.raises(ConfigError, match="expected blocks 0 to 7"):
        narrow(start, num_blocks=8, reach=reach, count=lambda _: 0.0)


def test_random_ranges_are_as_wide_and_apart() -> None:
    of = Range(6, 14)
    drawn = random_ranges(of, num_blocks=32, count=4, seed=0)
    assert len(set(drawn)) == 4
    assert {one.width for one in drawn} == {9}
    assert not any(set(one.layers) & set(of.layers) for one in drawn)
    assert drawn == random_ranges(of, num_blocks=32, count=4, seed=0)
    assert drawn != random_ranges(of, num_blocks=32, count=4, seed=1)


def test_in_a_narrow_model_random_ranges_overlap_as_little_as_they_can() -> None:
    first, *_ = random_ranges(Range(2, 5), num_blocks=8, count=5, seed=0)
    assert first.overlap(Range(2, 5)) == 2


def test_a_range_of_all_blocks_has_no_random_one() -> None:
    with pytest.raises(ConfigError, match="take a narrower one"):
        random_ranges(Range(0, 7), num_blocks=8, count=1, seed=0)


@pytest.mark.parametrize("text", ["6-14", "6 - 14", "0-0"])
def test_a_range_is_written_as_it_is_read(text: str) -> None:
    assert str(Range.parse(text)) == text.replace(" ", "")


def test_one_number_is_a_range_of_one() -> None:
    assert Range.parse("3").layers == range(3, 4)


@pytest.mark.parametrize("text", ["", "a-b", "1-2-3", "-3", "5-2", "1.5-2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"range of blocks|FROM-TO"):
        Range.parse(text)


def test_a_range_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        Range.parse("2-4", num_blocks=4)

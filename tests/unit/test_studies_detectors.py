"""Repeated fits, kinds of detectors and few prompts: what their findings say is what is so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec, OwnPass, Read
from demur.core.templates import find
from demur.engines.fake import FakeEngine
from demur.studies import _few, detectors, layers, sample_size
from demur.studies._contenders import Contender, every_layer, narrowed, users_tokens
from demur.studies._few import Measured
from demur.studies._measures import Difference, claim
from demur.studies._repeats import Repeated, part_of, repeat
from demur.studies._study import Plot, StudyInputs, StudyResult
from tests.studies import examples, of_all_sources, read

NUM_BLOCKS = 4


@pytest.fixture(scope="module")
def inputs() -> StudyInputs:
    return StudyInputs(
        read=partial(read, FakeEngine(num_layers=NUM_BLOCKS, strength=2.0)),
        num_blocks=NUM_BLOCKS,
        train=of_all_sources(8, start=0),
        val=of_all_sources(4, start=100),
        tests={
            "test_id": of_all_sources(4, start=200),
            "mixed": [*examples("new", "unsafe", 4), *examples("newer", "safe", 4)],
        },
        seeds=(0, 1),
    )


@pytest.fixture(scope="module")
def answer(inputs: StudyInputs) -> tuple[StudyResult, set[str]]:
    """Return what the study says, and the texts that were read for it."""
    texts: set[str] = set()

    def spy(prompts: Sequence[Example], reads: Sequence[Read]) -> Readings:
        if not any(isinstance(read, OwnPass) for read in reads):
            texts.update(prompt.chat.last_user_text for prompt in prompts)
        return inputs.read(prompts, reads)

    return detectors.Detectors(wording=3).run(replace(inputs, read=spy)), texts


@pytest.fixture(scope="module")
def result(answer: tuple[StudyResult, set[str]]) -> StudyResult:
    return answer[0]


def test_a_part_holds_the_same_share_of_each_label() -> None:
    unsafe = np.arange(100) % 4 == 0
    rows = part_of(unsafe, share=0.8, seed=0)
    assert (len(rows), int(unsafe[rows].sum())) == (80, 20)
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_parts_of_other_seeds_are_other_prompts_and_the_whole_is_all() -> None:
    unsafe = np.arange(40) % 2 == 0
    parts = {tuple(part_of(unsafe, share=0.5, seed=seed)) for seed in range(4)}
    assert len(parts) == 4
    assert part_of(unsafe, share=1.0, seed=3).tolist() == list(range(40))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share is"):
        part_of(np.array([True, False]), share=share, seed=0)


def test_each_seed_is_a_fit_of_its_own_and_one_seed_alone_gives_its_values(
    inputs: StudyInputs,
) -> None:
    contenders = [Contender(name, name) for name in ("prototypes", "nearest_mean")]
    reads = every_layer(NUM_BLOCKS)
    both = repeat(inputs, contenders, reads)
    second = repeat(replace(inputs, seeds=(1,)), contenders, reads)
    assert [of.of_seeds[1] for of in both] == [of.of_seeds[0] for of in second]
    assert both[0].of_seeds[0] != both[0].of_seeds[1]


def repeated(*aurocs: float | None) -> Repeated:
    return Repeated(Contender("p", "prototypes"), tuple({"test_auroc": value} for value in aurocs))


def test_a_difference_is_paired_and_its_error_that_of_the_mean() -> None:
    gap = repeated(0.9, 0.7, 0.8).minus(repeated(0.8, 0.5, 0.8), "test_auroc")
    assert gap is not None
    assert gap.mean == pytest.approx(0.1)
    assert gap.error == pytest.approx(np.std([0.1, 0.2, 0.0], ddof=1) / np.sqrt(3))
    assert not gap.is_higher
    assert not gap.is_lower


@pytest.mark.parametrize(
    ("ours", "is_higher", "is_lower"),
    [([0.9, 0.9], True, False), ([0.1, 0.11], False, True), ([0.6], True, False)],
)
def test_a_difference_counts_from_two_standard_errors_on(
    ours: list[float], is_higher: bool, is_lower: bool
) -> None:
    gap = Difference.of(ours, [0.5] * len(ours))
    assert gap is not None
    assert (gap.is_higher, gap.is_lower) == (is_higher, is_lower)


def test_pairs_of_which_one_is_not_known_do_not_count() -> None:
    gap = Difference.of([0.9, None], [0.8, 0.1])
    assert gap is not None
    assert (gap.num_pairs, gap.error) == (1, None)
    assert Difference.of([None], [0.5]) is None


def test_a_claim_says_whether_it_holds() -> None:
    assert claim("v1: a", holds=True, numbers="1 of 1") == "Claim of v1: a. Holds here: 1 of 1."


def test_means_and_maxima_cut_from_tokens_are_those_that_the_model_yields() -> None:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    tokens = users_tokens((1,))
    prompts = of_all_sources(2, start=0)
    for pool in ("mean", "max"):
        wanted = replace(tokens, pool=pool)
        cut = narrowed(read(engine, prompts, (tokens,)), (wanted,), num_blocks=NUM_BLOCKS)
        direct = read(engine, prompts, (wanted,)).pooled(wanted)
        np.testing.assert_allclose(cut.pooled(wanted), direct, rtol=1e-5)


def test_detectors_has_each_kind_on_both_forms_of_a_prompt_and_the_model_itself(
    result: StudyResult,
) -> None:
    assert result.columns == detectors.COLUMNS
    of_form = [
        [
            (row["detector"], row["tokens"], row["layer"])
            for row in result.rows
            if row["prompt"] == p
        ]
        for p in (detectors.PLAIN, detectors.WRAPPED)
    ]
    assert of_form[0] == [
        ("linear, last token", "last", 3),
        ("mlp, last token", "last", 3),
        ("linear, mean over tokens", "all", 3),
        ("mlp, mean over tokens", "all", 3),
        ("linear, each token", "all", 3),
        ("transformer", "all", 3),
    ]
    assert of_form[1] == [*of_form[0], ("asked", "none", None)]


def test_a_layer_of_ones_own_stands_beside_the_last_one(inputs: StudyInputs) -> None:
    study = detectors.Detectors(layer=0)
    found = [(kind.contender.label, kind.layer) for kind in study._kinds(NUM_BLOCKS)]
    assert ("mlp, last token", 0) in found
    assert ("mlp, last token", 3) in found


def test_rows_count_their_draws_and_how_far_these_are_apart(result: StudyResult) -> None:
    assert {row["draws"] for row in result.rows} == {2}
    assert any(row["test_auroc_sd"] for row in result.rows)


def test_prompts_are_read_as_they_are_and_inside_the_question(
    answer: tuple[StudyResult, set[str]], inputs: StudyInputs
) -> None:
    plain = {example.chat.last_user_text for example in inputs.train}
    inside = {find("prompted:3").wrapped(e.chat).last_user_text for e in inputs.train}
    assert plain | inside <= answer[1]


def test_detectors_says_of_each_claim_whether_it_holds(result: StudyResult) -> None:
    claims = [line for line in result.findings if line.startswith("Claim of")]
    assert len(claims) == 2
    assert all("olds here" in line or "not hold here" in line for line in claims)


def test_bars_have_the_spread_of_the_draws(result: StudyResult) -> None:
    for plot in result.plots:
        assert isinstance(plot, Plot)
        assert all(len(series.error) == len(series.y) for series in plot.series)


def test_the_claim_on_later_layers_follows_from_the_table(
    inputs: StudyInputs,
) -> None:
    found = layers.Layers(methods=("prototypes",)).run(inputs)
    later = [float(row["outside_auroc"] or 0) for row in found.rows][NUM_BLOCKS // 2 :]
    (said,) = [line for line in found.findings if "later layers" in line]
    assert ("Holds here" in said) == (max(later) - min(later) <= layers.ALIKE)


def measured(label: str, size: int, f1: Sequence[float], val: float = 0.5) -> list[Measured]:
    return [
        Measured(label, size, seed, {"f1": value, "val_auroc": val})
        for seed, value in enumerate(f1)
    ]


def test_the_last_layer_is_what_few_prompts_are_compared_with() -> None:
    found = [
        *measured(_few.LAST_LAYER, 10, [0.6, 0.7]),
        *measured("steady", 10, [0.7, 0.8], val=0.9),
        *measured("lucky", 10, [0.9, 0.8], val=0.8),
    ]
    (said,) = _few.over_last_layer(found)
    assert said == (
        "10 prompts a class, F1 over LPM, last layer (0.6500): validation takes steady, "
        "+0.1000 (standard error 0.0000, 2 seeds); the highest in hindsight is lucky, "
        "+0.2000 (standard error 0.1000, 2 seeds)."
    )


def test_draws_that_one_detector_could_not_be_fitted_on_are_left_out_of_the_difference() -> None:
    found = [*measured(_few.LAST_LAYER, 10, [0.6, 0.2]), *measured("other", 10, [0.7])]
    gap = _few.over(found, "other", _few.LAST_LAYER, size=10)
    assert gap == Difference(0.7 - 0.6, None, 1)


@pytest.mark.parametrize(
    ("of_all", "holds"),
    [
        ({10: [0.5, 0.5], 1000: [0.9, 0.9]}, (True, True)),
        ({10: [0.7, 0.7], 1000: [0.6, 0.6]}, (False, False)),
    ],
)
def test_the_papers_detectors_change_places_or_not(
    of_all: Mapping[int, list[float]], holds: tuple[bool, bool]
) -> None:
    found = []
    for size, values in of_all.items():
        found += measured(_few.LAST_LAYER, size, [0.7, 0.7])
        found += measured(_few.MULTI_LAYER, size, values)
    assert tuple("Holds here" in said for said in _few.claims(found)) == holds


def test_without_the_last_layer_there_is_nothing_to_compare_with() -> None:
    assert _few.over_last_layer(measured("other", 10, [0.7])) == []
    assert _few.claims(measured("other", 10, [0.7])) == []


@pytest.mark.parametrize("label", ["linear, both", "nearest_mean, user mean", "layer_vote, both"])
def test_detectors_for_few_prompts_read_the_users_tokens_too(
    label: str, inputs: StudyInputs
) -> None:
    seen: set[Read] = set()

    def spy(prompts: Sequence[Example], reads: Sequence[Read]) -> Readings:
        seen.update(reads)
        return inputs.read(prompts, reads)

    study = sample_size.SampleSize(sizes=(10,), methods=("LPM, last layer", label))
    found = study.run(replace(inputs, read=spy))
    assert {row["detector"] for row in found.rows} == {"LPM, last layer", label}
    assert any(isinstance(read, CaptureSpec) and read.positions == "user" for read in seen)
    assert any(line.startswith("10 prompts a class, F1 over") for line in found.findings)

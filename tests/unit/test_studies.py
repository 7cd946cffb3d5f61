"""What studies promise: no choice on tests, the same prompts for all, the same answer twice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.examples import Example
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read
from demur.core.templates import find
from demur.engines.fake import FakeEngine
from demur.metrics.f1 import f1
from demur.studies import _measures, aggregation, layers, prompting, sample_size, transfer
from demur.studies._contenders import Contender, Pool, folds_of_sources, narrowed, score_tests
from demur.studies._replies import is_refusal
from demur.studies._study import Study, StudyInputs, StudyResult
from tests.studies import NUM_BLOCKS, SOURCES, examples, of_all_sources, read

Answer = Callable[[Study], StudyResult]
SMALL_SIZES = sample_size.SampleSize(sizes=(10, 20), methods=("LPM, last layer", "MLPM", "tfidf"))
STUDIES: tuple[Study, ...] = (
    layers.Layers(methods=("prototypes", "nearest_mean")),
    SMALL_SIZES,
    aggregation.Aggregation(aggregates=()),
    transfer.Transfer(methods=("prototypes", "linear"), min_prompts=10),
    prompting.Prompting(wordings=(0, 3), max_replies=10),
)


@pytest.fixture(scope="module")
def inputs() -> StudyInputs:
    engine = FakeEngine(num_layers=NUM_BLOCKS, strength=2.0)
    return StudyInputs(
        read=partial(read, engine),
        num_blocks=NUM_BLOCKS,
        train=of_all_sources(16, start=0),
        val=of_all_sources(8, start=100),
        tests={
            "test_id": of_all_sources(8, start=200),
            "mixed": [*examples("new", "unsafe", 8), *examples("newer", "safe", 8)],
            "jailbreaks": examples("jailbreaks", "unsafe", 8),
            "everyday": examples("everyday", "safe", 9),
        },
        pools={"jailbreaks": "everyday"},
        seeds=(0, 1),
        engine=engine,
    )


@pytest.fixture(scope="module")
def answer(inputs: StudyInputs) -> Answer:
    """Return what runs a study on the inputs, once."""
    known: dict[Study, StudyResult] = {}

    def once(study: Study) -> StudyResult:
        if study not in known:
            known[study] = study.run(inputs)
        return known[study]

    return once


def poisoned(inputs: StudyInputs) -> StudyInputs:
    """Return the same inputs with every label of the tests turned round."""

    def turned(prompts: Sequence[Example]) -> list[Example]:
        return [replace(e, label="safe" if e.label == "unsafe" else "unsafe") for e in prompts]

    return replace(inputs, tests={name: turned(of) for name, of in inputs.tests.items()})


def column(result: StudyResult, name: str) -> list[Any]:
    return [row[name] for row in result.rows]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: type(study).__name__)
def test_the_same_inputs_give_the_same_answer(
    study: Study, inputs: StudyInputs, answer: Answer
) -> None:
    assert study.run(inputs) == answer(study)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: type(study).__name__)
def test_an_answer_has_rows_plots_and_findings(study: Study, answer: Answer) -> None:
    result = answer(study)
    assert result.rows
    assert result.plots
    assert result.findings


@pytest.mark.parametrize(
    ("study", "columns"),
    [
        (STUDIES[0], layers.COLUMNS),
        (STUDIES[1], sample_size.COLUMNS),
        (STUDIES[2], aggregation.COLUMNS),
        (STUDIES[4], prompting.COLUMNS),
    ],
)
def test_a_table_has_the_columns_that_it_claims(
    study: Study, columns: tuple[str, ...], answer: Answer
) -> None:
    assert answer(study).columns == columns


def test_layers_has_a_row_for_each_detector_and_layer(answer: Answer) -> None:
    result = answer(STUDIES[0])
    places = list(zip(column(result, "detector"), column(result, "layer"), strict=True))
    assert places == [(m, n) for m in ("prototypes", "nearest_mean") for n in range(NUM_BLOCKS)]


@pytest.mark.parametrize("name", ["chosen", "val_auroc", "held_out_auroc"])
def test_the_choice_of_a_layer_does_not_look_at_the_tests(
    name: str, inputs: StudyInputs, answer: Answer
) -> None:
    result, other = answer(STUDIES[0]), STUDIES[0].run(poisoned(inputs))
    assert column(result, "test_auroc") != column(other, "test_auroc")
    assert column(result, name) == column(other, name)


def test_the_last_layer_is_what_a_choice_is_compared_with(answer: Answer) -> None:
    result = answer(STUDIES[0])
    last = [row for row in result.rows if row["layer"] == NUM_BLOCKS - 1]
    assert [row["chosen"] for row in last] == [None, None]


def test_thresholds_of_the_sample_sizes_do_not_look_at_the_tests(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []

    def spy(scores: Array, unsafe: Array) -> float:
        found.append(_measures.best_f1_threshold(scores, unsafe))
        return found[-1]

    monkeypatch.setattr(sample_size, "best_f1_threshold", spy)
    SMALL_SIZES.run(inputs)
    of_first = tuple(found)
    SMALL_SIZES.run(poisoned(inputs))
    assert tuple(found[len(of_first) :]) == of_first


def test_every_layer_and_detector_is_fitted_on_the_same_drawn_prompts(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    states: dict[tuple[int, int], set[bytes]] = {}
    fit = Pool.fit

    def spy(pool: Pool, contender: Contender, *, seed: int) -> Detector:
        key = (len(pool.targets), seed)
        drawn.setdefault(key, set()).add(tuple(pool.targets.group))
        every_layer = pool.readings.pooled(CaptureSpec(tuple(range(NUM_BLOCKS))))
        states.setdefault(key, set()).add(every_layer.tobytes())
        return fit(pool, contender, seed=seed)

    monkeypatch.setattr(Pool, "fit", spy)
    SMALL_SIZES.run(inputs)
    assert set(drawn) == {(20, 0), (20, 1), (40, 0), (40, 1)}
    assert {len(prompts) for prompts in drawn.values()} == {1}
    assert {len(of_draw) for of_draw in states.values()} == {1}


def test_a_larger_draw_holds_the_smaller_one_and_as_many_of_each_class() -> None:
    unsafe = np.arange(60) % 3 == 0
    small, large = (sample_size.draw(unsafe, size=size, seed=4) for size in (5, 12))
    assert set(small) <= set(large)
    assert [int(unsafe[rows].sum()) for rows in (small, large)] == [5, 12]


def test_draws_of_other_seeds_are_other_prompts() -> None:
    unsafe = np.arange(60) % 2 == 0
    draws = {tuple(sample_size.draw(unsafe, size=10, seed=seed)) for seed in range(5)}
    assert len(draws) == 5


def test_sizes_that_the_training_prompts_cannot_fill_are_left_out(inputs: StudyInputs) -> None:
    study = sample_size.SampleSize(sizes=(10, 33), methods=("LPM, last layer",))
    assert column(study.run(inputs), "prompts_a_class") == [10]


def test_sizes_of_which_none_can_be_filled_are_refused(inputs: StudyInputs) -> None:
    with pytest.raises(ConfigError, match="there are 32 prompts a class"):
        sample_size.SampleSize(sizes=(33,)).run(inputs)


def test_an_unknown_detector_of_the_sample_sizes_is_refused(inputs: StudyInputs) -> None:
    with pytest.raises(ConfigError, match="LPM, last layer"):
        sample_size.SampleSize(methods=("lpm",)).run(inputs)


def test_a_detector_that_needs_more_prompts_is_named_in_the_findings(inputs: StudyInputs) -> None:
    study = sample_size.SampleSize(sizes=(10,), methods=("LPM, last layer", "MLPM"))
    two_groups = [replace(example, group=example.label) for example in inputs.train]
    result = study.run(replace(inputs, train=two_groups, seeds=(0,)))
    assert column(result, "detector") == ["LPM, last layer"]
    assert any(finding.startswith("MLPM on 10 a class") for finding in result.findings)


def test_a_source_is_never_among_the_prompts_of_the_fit_that_judges_it(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted_on: list[set[str]] = []
    fit = Pool.fit

    def spy(pool: Pool, contender: Contender, *, seed: int) -> Detector:
        fitted_on.append(set(pool.targets.source))
        return fit(pool, contender, seed=seed)

    monkeypatch.setattr(Pool, "fit", spy)
    study = transfer.Transfer(methods=("prototypes",), controls=(), min_prompts=10)
    result = study.run(inputs)
    names = {source for source, _ in SOURCES}
    assert fitted_on == [names - {source} for source in column(result, "source")]


def test_shuffled_labels_know_nothing_of_a_source_left_out(inputs: StudyInputs) -> None:
    study = transfer.Transfer(methods=("prototypes",), controls=("shuffled labels",))
    result = study.run(replace(inputs, train=of_all_sources(40, start=0)))
    planted, shuffled = (
        np.mean(column(result, f"{name}: auroc")) for name in ("prototypes", "shuffled labels")
    )
    assert planted > 0.8
    assert abs(shuffled - 0.5) < 0.25


def test_a_source_without_validation_prompts_of_others_has_no_numbers(inputs: StudyInputs) -> None:
    of_one = [replace(example, source="attacks") for example in inputs.val]
    study = transfer.Transfer(methods=("prototypes",), controls=(), min_prompts=10)
    result = study.run(replace(inputs, val=of_one))
    assert column(result, "prototypes: auroc")[0] is None
    assert None not in column(result, "prototypes: auroc")[1:]


def test_transfer_from_a_single_source_is_refused(inputs: StudyInputs) -> None:
    one = [replace(example, source="all") for example in inputs.train]
    with pytest.raises(DataError, match="expected several sources"):
        transfer.Transfer().run(replace(inputs, train=one))


def test_sources_do_not_straddle_folds_and_each_fold_has_both_labels(inputs: StudyInputs) -> None:
    targets = _targets(inputs.train)
    folds = folds_of_sources(targets, num_folds=5, seed=0)
    assert folds is not None
    for source in np.unique(targets.source):
        assert len(set(folds[targets.source == source])) == 1
    assert [set(targets.unsafe[folds == fold]) for fold in (0, 1)] == [{True, False}] * 2


def test_a_label_with_one_source_makes_no_folds() -> None:
    targets = _targets([*examples("a", "unsafe", 4), *examples("b", "safe", 4)])
    assert folds_of_sources(targets, num_folds=3, seed=0) is None


def _targets(prompts: Sequence[Example]) -> Targets:
    return Targets(
        np.array([e.label == "unsafe" for e in prompts]),
        np.array([e.group_key for e in prompts]),
        np.array([e.source for e in prompts]),
    )


def test_a_row_a_wording_and_two_of_detectors_of_states(answer: Answer) -> None:
    assert column(answer(STUDIES[4]), "recogniser") == [
        "wording 0",
        "wording 3",
        "linear on states",
        "linear on states, inside a wording",
    ]


def test_a_detector_inside_a_wording_reads_the_question_about_the_prompt(
    inputs: StudyInputs,
) -> None:
    seen: list[str] = []

    def spy(prompts: Sequence[Example], reads: Sequence[Read]) -> Readings:
        seen.extend(prompt.chat.last_user_text for prompt in prompts)
        return inputs.read(prompts, reads)

    STUDIES[4].run(replace(inputs, read=spy))
    plain = inputs.train[0].chat
    assert {plain.last_user_text, find("prompted:0").wrapped(plain).last_user_text} <= set(seen)


def test_what_is_answered_is_counted_against_what_is_recognised(answer: Answer) -> None:
    result = answer(STUDIES[4])  # the fake model repeats the prompt: it refuses nothing
    for row in result.rows:
        assert row["answered"] == 10
        assert row["recognised_and_answered"] == row["recognised"]


@pytest.mark.parametrize(("of_safe", "verdict"), [(0.1, "Holds"), (0.9, "Does not hold")])
def test_who_calls_safe_prompts_unsafe_too_recognises_nothing(of_safe: float, verdict: str) -> None:
    row: dict[str, str | float | int | None] = {
        "recogniser": "wording 0",
        "recognised_and_answered": 10,
        "recognised_of_answered": 1.0,
        "safe_called_unsafe": of_safe,
    }
    assert verdict in prompting._answered_though_recognised([row], np.ones(10, bool))[1]


def test_without_an_engine_nothing_is_answered(inputs: StudyInputs) -> None:
    result = STUDIES[4].run(replace(inputs, engine=None))
    assert column(result, "answered") == [None] * 4


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I\u2019m sorry, I can\u2019t help with that.", True),
        ("As an AI model, I must decline.", True),
        ("Sure! First you take the lid off.", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_by_its_phrases(reply: str, expected: bool) -> None:
    assert is_refusal(reply) is expected


def test_prompts_are_taken_at_even_distances(inputs: StudyInputs) -> None:
    ids = [example.id for example in prompting.spread_over(inputs.train, 4)]
    assert ids == [f"{source}-0" for source, _ in SOURCES]


def test_unsafe_prompts_alone_are_compared_with_the_pool_that_is_named(inputs: StudyInputs) -> None:
    reads = (CaptureSpec(tuple(range(NUM_BLOCKS))),)
    detector = Pool.read(inputs, inputs.train, reads).fit(Contender("p", "prototypes"), seed=0)
    scored = {of.name: of for of in score_tests(inputs, [detector], reads)}
    assert scored["jailbreaks"].unsafe.sum() == 8
    everyday = scored["everyday"].scores[0]
    np.testing.assert_array_equal(scored["jailbreaks"].scores[0][8:], everyday)


def test_readings_cut_from_every_layer_are_those_of_the_layer() -> None:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    reads = (CaptureSpec(tuple(range(NUM_BLOCKS))),)
    prompts = of_all_sources(2, start=0)
    wanted = (CaptureSpec((-1, 0)),)
    cut = narrowed(read(engine, prompts, reads), wanted, num_blocks=NUM_BLOCKS)
    np.testing.assert_array_equal(
        cut.pooled(wanted[0]), read(engine, prompts, wanted).pooled(wanted[0])
    )


def test_a_layer_that_was_not_captured_is_refused() -> None:
    readings = Readings({CaptureSpec((0, 2)): np.zeros((2, 2, 4), np.float32)})
    with pytest.raises(CapabilityError, match="was not captured"):
        narrowed(readings, [CaptureSpec((1,))], num_blocks=NUM_BLOCKS)


def test_the_threshold_of_the_best_f1_is_that_of_trying_all() -> None:
    generator = np.random.default_rng(0)
    unsafe = generator.random(80) < 0.4
    scores = generator.standard_normal(80) + unsafe
    tried = [f1_score(unsafe, scores > at - 1e-9) for at in scores]
    found = _measures.best_f1_threshold(scores, unsafe)
    assert f1(scores, unsafe, threshold=found) == pytest.approx(max(tried))

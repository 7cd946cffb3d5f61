"""What is promised of changed and attacked prompts: who is said to be flagged, and how often."""

from dataclasses import replace

import numpy as np
import pytest

from demur.core.errors import ConfigError, DataError, MissingPackageError
from demur.core.examples import Example
from demur.core.protocols import Detector
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.studies._contenders import Contender, Pool
from demur.studies._judges import ONE_LAYER, JudgedStudy, fitting, prompts_of
from demur.studies._rewriting import rewrites
from demur.studies._study import StudyInputs, StudyResult
from demur.studies.attacks import EDITS, REWRITES, Attacks
from demur.studies.robustness import COLUMNS, Robustness
from tests.judged_studies import HEAD, NUM_BLOCKS, cells, examples, head_on, inputs_on, of_both

ROBUSTNESS = Robustness(num_prompts=4, num_padded=2, lengths=(64, 1024))
ATTACKS = Attacks(budgets=(1, 4), num_prompts=4, rivals=("tfidf", ONE_LAYER))


@pytest.fixture(scope="module")
def inputs() -> StudyInputs:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    return inputs_on(engine, head_on(engine))


@pytest.fixture(scope="module")
def robustness(inputs: StudyInputs) -> StudyResult:
    return ROBUSTNESS.run(inputs)


@pytest.fixture(scope="module")
def attacks(inputs: StudyInputs) -> StudyResult:
    return ATTACKS.run(inputs)


# Judges


def test_an_ensemble_flags_what_one_of_its_heads_flags(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=(ONE_LAYER,), partners=(ONE_LAYER,)).panel(inputs)
    prompts = [*of_both(4, start=300), *examples("unsafe", 4, start=400)]
    strict, lenient = panel.judges[0], replace(panel.judges[1], threshold=-1e9)
    for judges in (panel.judges, (strict, lenient)):
        margins = replace(panel, judges=judges).margins(inputs, prompts)
        scores = [
            judge.detector.decision_function(inputs.read(prompts, judge.detector.reads))
            >= judge.threshold
            for judge in judges
        ]
        np.testing.assert_array_equal(margins[f"{HEAD} + {ONE_LAYER}"] >= 0, scores[0] | scores[1])


def test_margins_are_counted_in_deviations_of_validation_scores(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=(), partners=()).panel(inputs)
    detector = panel.judges[0].detector
    scores = detector.decision_function(inputs.read(inputs.val, detector.reads))
    margins = panel.margins(inputs, inputs.val)[HEAD]
    np.testing.assert_allclose(margins, (scores - panel.judges[0].threshold) / scores.std())


def test_a_rival_is_used_at_one_percent_of_the_safe_validation_prompts(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=("tfidf",), partners=()).panel(inputs)
    safe = [example for example in inputs.val if example.label == "safe"]
    margins = panel.margins(inputs, safe)["tfidf"]
    assert (margins >= 0).sum() <= 1
    assert margins.max() == pytest.approx(0.0, abs=0.1)


def test_a_rival_whose_packages_are_missing_is_left_out_and_named(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Pool.fit

    def failing(pool: Pool, contender: Contender, *, seed: int) -> Detector:
        if contender.method == "tfidf":
            raise MissingPackageError("no words: pip install words")
        return fit(pool, contender, seed=seed)

    monkeypatch.setattr(Pool, "fit", failing)
    panel = JudgedStudy(rivals=("tfidf", ONE_LAYER), partners=("tfidf", ONE_LAYER)).panel(inputs)
    assert panel.names == (HEAD, ONE_LAYER, f"{HEAD} + {ONE_LAYER}")
    assert panel.left_out == ("tfidf was left out: no words: pip install words.",)


@pytest.mark.parametrize(
    ("rivals", "partners", "count", "part"),
    [
        ((), (), 0, "none was given"),
        (("tfidf",), ("mlp",), 1, "mlp"),
        ((), (), 2, "name of its own"),
    ],
)
def test_a_panel_that_makes_no_sense_is_refused(
    rivals: tuple[str, ...], partners: tuple[str, ...], count: int, part: str, inputs: StudyInputs
) -> None:
    with pytest.raises(ConfigError, match=part):
        JudgedStudy(rivals, partners).panel(replace(inputs, judges=inputs.judges * count))


def test_prompts_longer_than_the_context_do_not_fit(inputs: StudyInputs) -> None:
    prompts = [Example("short", Chat.from_text("a")), Example("long", Chat.from_text("a " * 600))]
    assert fitting(inputs, prompts).tolist() == [True, False]
    assert fitting(replace(inputs, engine=None), prompts).all()


def test_only_short_english_prompts_of_one_turn_are_taken(inputs: StudyInputs) -> None:
    kept = Example("kept", Chat.from_text("a b"), "unsafe")
    others = [
        replace(kept, chat=Chat.from_text("a b c")),
        replace(kept, chat=Chat.from_text("a b", system="c")),
        replace(kept, language="bn"),
        replace(kept, label="safe"),
    ]
    tests = {"one": [*others, kept]}
    assert prompts_of(replace(inputs, tests=tests), "unsafe", max_words=2) == [kept]
    with pytest.raises(DataError, match="no unsafe English prompt"):
        prompts_of(replace(inputs, tests={"one": others}), "unsafe", max_words=2)


# Robustness


def test_plain_prompts_and_those_under_a_system_prompt_are_told_apart(
    robustness: StudyResult,
) -> None:
    assert robustness.columns == COLUMNS
    own = {"detector": HEAD}
    assert cells(robustness, "recall", transformation="plain", **own) == [1.0]
    assert cells(robustness, "false_positives", transformation="plain", **own) == [0.0]
    assert cells(robustness, "recall_change", family="system prompt", **own) == [0.0] * 20


def test_what_hides_the_marker_is_seen_as_a_fall_of_recall(robustness: StudyResult) -> None:
    of_lower = {"transformation": "lower case", "detector": HEAD}
    assert cells(robustness, "recall_change", **of_lower) == [-1.0]
    assert cells(robustness, "recall_low", **of_lower) == [0.0]
    assert 0.2 < cells(robustness, "recall_high", **of_lower)[0] < 0.8  # of four prompts
    assert any("recall falls most under lower case (-1.000)" in of for of in robustness.findings)


def test_padding_that_the_context_cannot_take_is_left_out(robustness: StudyResult) -> None:
    names = cells(robustness, "transformation", family="padding", detector=HEAD)
    assert names == [
        f"padding of 64 tokens, prompt at the {place}" for place in ("start", "middle", "end")
    ]
    assert cells(robustness, "unsafe", family="padding", detector=HEAD) == [2, 2, 2]


def test_each_shape_of_a_dialogue_has_a_row(robustness: StudyResult) -> None:
    names = cells(robustness, "transformation", family="dialogue", detector=HEAD)
    assert len(names) == 11
    assert names[0] == "all dialogues"


def test_without_a_prompt_that_fits_there_are_no_rows_of_dialogues(inputs: StudyInputs) -> None:
    small = FakeEngine(num_layers=NUM_BLOCKS, max_tokens=20)
    study = Robustness(rivals=(), num_prompts=2, num_padded=0)
    result = study.run(replace(inputs, engine=small))
    assert not cells(result, "recall", family="dialogue")
    assert not cells(result, "recall", family="padding")


# Attacks


def test_an_attacker_gets_further_with_more_tries(attacks: StudyResult) -> None:
    for name in dict.fromkeys(row["detector"] for row in attacks.rows):
        first, more = cells(attacks, "evaded", attack=REWRITES, detector=name)
        assert first <= more


def test_the_whole_budget_is_spent_on_the_rewrites_of_each_prompt(
    inputs: StudyInputs, attacks: StudyResult
) -> None:
    judge = inputs.judges[0]
    unsafe = prompts_of(inputs, "unsafe", max_words=40)
    evaded = []
    for row, example in enumerate(unsafe[place] for place in (0, 1, 3, 4)):
        tried = rewrites(example.chat.last_user_text, 4, encoded_share=0.2, seed=(0, row))
        prompts = [replace(example, chat=Chat.from_text(of.text)) for of in tried]
        scores = judge.detector.decision_function(inputs.read(prompts, judge.detector.reads))
        evaded.append((scores < judge.threshold).any())
    of_all = cells(attacks, "evaded", attack=REWRITES, detector=HEAD, budget=4)
    assert of_all == [pytest.approx(np.mean(evaded))]
    assert of_all[0] > 0


def test_nothing_evades_an_ensemble_that_does_not_evade_both_heads(attacks: StudyResult) -> None:
    for attack in dict.fromkeys(row["attack"] for row in attacks.rows):
        both, head, words = (
            np.array(cells(attacks, "evaded", attack=attack, detector=name))
            for name in (f"{HEAD} + tfidf", HEAD, "tfidf")
        )
        assert (both <= np.minimum(head, words)).all()


def test_an_edit_by_itself_is_told_of_unsafe_and_safe_prompts(attacks: StudyResult) -> None:
    assert cells(attacks, "evaded", attack="none", detector=HEAD) == [0.0]
    assert cells(attacks, "evaded", attack="base64", detector=HEAD) == [1.0]
    assert cells(attacks, "safe_flagged", attack="base64", detector=HEAD) == [0.0]
    assert {row["attack"] for row in attacks.rows} >= set(EDITS)


def test_the_same_inputs_give_the_same_answer(
    inputs: StudyInputs, robustness: StudyResult, attacks: StudyResult
) -> None:
    assert ROBUSTNESS.run(inputs) == robustness
    assert ATTACKS.run(inputs) == attacks


def test_without_gradients_no_suffix_is_searched(attacks: StudyResult) -> None:
    assert any(finding.startswith("No suffix was searched") for finding in attacks.findings)


@pytest.mark.parametrize("budgets", [(), (0, 3)])
def test_budgets_without_a_try_are_refused(budgets: tuple[int, ...], inputs: StudyInputs) -> None:
    with pytest.raises(ConfigError, match="budgets"):
        Attacks(budgets=budgets).run(inputs)

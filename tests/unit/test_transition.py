"""The transition detector against cosines by hand, and on a real model."""

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array, Readings
from demur.core.reads import AppendedTokens, CaptureSpec, Read, Texts
from demur.core.types import Chat
from demur.detectors.transition import Transition
from demur.engines.transformers import TransformersEngine
from tests.guards import read_texts, targets_of
from tests.tiny import tiny

LAYERS = (1, 3)
BEFORE, AFTER = CaptureSpec(LAYERS), AppendedTokens("Sure", LAYERS)
TEXTS = ["How do foxes sleep?", "Name a river.", "Sing to me.", "Why is it so?", "Go home now."]
UNSAFE = np.array([True, False, True, False, True])


def readings_of(before: Array, after: Array) -> Readings:
    return Readings({BEFORE: before, AFTER: after})


def drawn(num_prompts: int, *, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    shape = (num_prompts, len(LAYERS), 6)
    return (
        generator.normal(size=shape).astype(np.float32),
        generator.normal(size=shape).astype(np.float32),
    )


def test_the_score_is_the_mean_cosine_to_the_mean_unsafe_transition() -> None:
    before, after = drawn(5)
    detector = Transition((BEFORE, AFTER))
    detector.fit(readings_of(before, after), targets_of(UNSAFE), seed=0)
    fresh = drawn(3, seed=1)
    expected = []
    for row in range(3):
        cosines = []
        for layer in range(len(LAYERS)):
            reference = sum(before[n, layer] - after[n, layer] for n in (0, 2, 4)) / 3
            moved = fresh[0][row, layer] - fresh[1][row, layer]
            lengths = np.sqrt((moved**2).sum() * (reference**2).sum())
            cosines.append(float((moved * reference).sum() / lengths))
        expected.append(sum(cosines) / len(cosines))
    found = detector.decision_function(readings_of(*fresh))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_safe_prompts_play_no_part_in_the_fit() -> None:
    before, after = drawn(5)
    detectors = []
    for shift in (0.0, 9.0):
        moved = before + shift * ~UNSAFE[:, None, None]
        detector = Transition((BEFORE, AFTER))
        detectors.append(detector.fit(readings_of(moved, after), targets_of(UNSAFE), seed=0))
    first, second = (of.state()["reference"] for of in detectors)
    np.testing.assert_array_equal(first, second)


def test_a_centred_score_is_measured_from_the_middle_of_both_labels() -> None:
    before, after = drawn(5)
    detector = Transition((BEFORE, AFTER), centred=True)
    detector.fit(readings_of(before, after), targets_of(UNSAFE), seed=0)
    moved = before.astype(float) - after
    means = [moved[rows].mean(0) for rows in (UNSAFE, ~UNSAFE)]
    fresh = drawn(3, seed=1)
    expected = []
    for transition in fresh[0].astype(float) - fresh[1]:
        cosines = []
        for layer in range(len(LAYERS)):
            away = transition[layer] - (means[0][layer] + means[1][layer]) / 2
            towards = means[0][layer] - means[1][layer]  # half of it, to no effect
            cosines.append(away @ towards / np.sqrt((away @ away) * (towards @ towards)))
        expected.append(np.mean(cosines))
    found = detector.decision_function(readings_of(*fresh))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_a_word_does_to_all_prompts_is_no_part_of_a_centred_score() -> None:
    before, after = drawn(5)
    common = 50 * np.ones((1, len(LAYERS), 6), np.float32)
    scores = []
    for shift in (0, common):
        detector = Transition((BEFORE, AFTER), centred=True)
        detector.fit(readings_of(before + shift, after), targets_of(UNSAFE), seed=0)
        scores.append(detector.decision_function(readings_of(before + shift, after)))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_a_state_that_does_not_move_is_like_nothing() -> None:
    before, after = drawn(5)
    detector = Transition((BEFORE, AFTER))
    detector.fit(readings_of(before, after), targets_of(UNSAFE), seed=0)
    still, _ = drawn(2, seed=1)
    np.testing.assert_array_equal(detector.decision_function(readings_of(still, still)), [0, 0])


def test_unsafe_prompts_that_move_nowhere_teach_nothing() -> None:
    before, _ = drawn(5)
    with pytest.raises(DataError, match="nothing"):
        Transition((BEFORE, AFTER)).fit(readings_of(before, before), targets_of(UNSAFE), seed=0)


def test_it_reads_both_ends_of_a_word_on_a_real_model() -> None:
    model, layers = tiny(), (0, 2)
    engine = TransformersEngine(model)
    detector = Transition(Transition.default_reads(4, layers=layers), word="Yes, sure")
    readings = read_texts(engine, detector.reads, TEXTS)
    detector.fit(readings, targets_of(UNSAFE), seed=0)
    word = model.tokenizer("Yes, sure", add_special_tokens=False)["input_ids"]
    moved = []
    for text in TEXTS:
        ids = list(engine.render(Chat.from_text(text)).token_ids)
        with torch.inference_mode():
            states = model.model(torch.tensor([[*ids, *word]]), output_hidden_states=True)
        before_and_after = [
            states.hidden_states[layer + 1][0, [len(ids) - 1, -1]] for layer in layers
        ]
        moved.append([(before - after).numpy() for before, after in before_and_after])
    reference = np.array(moved)[UNSAFE].mean(0)
    np.testing.assert_allclose(detector.state()["reference"], reference, atol=1e-5)


def test_the_word_is_a_hyper_parameter() -> None:
    detector = Transition(Transition.default_reads(6), word="Yes")
    restored = Transition.from_hyper_parameters(detector.hyper_parameters())
    assert restored == detector
    assert restored.reads == (CaptureSpec((2, 3, 4, 5)), AppendedTokens("Yes", (2, 3, 4, 5)))


@pytest.mark.parametrize(
    "reads", [(), (Texts(),), (CaptureSpec((1,), pool="mean", positions="user"),), (AFTER,)]
)
def test_reads_without_the_prompts_end_are_refused(reads: tuple[Read, ...]) -> None:
    with pytest.raises(ConfigError, match="the last token"):
        Transition(reads)


@pytest.mark.parametrize("shape", [(3, 6), (6,), (2, 6, 1)])
def test_a_reference_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        Transition((BEFORE, AFTER)).load_state(
            {"centre": np.zeros(shape), "reference": np.ones(shape)}
        )

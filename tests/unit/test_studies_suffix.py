"""The search for a suffix: its gradient, its steps, and what an attack makes of it."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Prompt, Span
from demur.detectors.linear import Linear
from demur.engines.transformers import TransformersEngine
from demur.modeling.blocks import find_parts
from demur.modeling.capture import capture
from demur.modeling.load import LoadedModel
from demur.studies._study import Judge, StudyResult
from demur.studies._suffix import Objective, Suffix, SuffixSearch
from demur.studies.attacks import Attacks
from tests.judged_studies import HEAD, TEXT, cells, inputs_on, of_both
from tests.tiny import tiny

READS = (
    CaptureSpec((1, -1)),
    CaptureSpec((0, 2), "user", normalise="rms", pool="mean"),
    CaptureSpec((0, 1), "user", site="mlp_out", pool="max"),
)


def readout() -> LinearReadout:
    draw = np.random.default_rng(3)
    weights = {spec: draw.standard_normal((2, 32)).astype(np.float32) for spec in READS}
    return LinearReadout(weights, bias=0.5)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny()


@pytest.fixture(scope="module")
def suffix(loaded: LoadedModel) -> Suffix:
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more"))
    return SuffixSearch(loaded, readout(), num_tokens=6, num_steps=6).run(prompt, seed=0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    loaded = tiny("gpt2")  # of doubles all through: the norms of others compute in float32
    model = copy.deepcopy(loaded.model).double()
    exact = LoadedModel(model, loaded.tokenizer, find_parts(model), loaded.model_id)
    user = Span("user", 1, 5)
    prompt = Prompt(Chat.from_text("any"), (3, 1, 4, 1, 5, 9, 2), (user,))
    objective = Objective(exact, readout(), prompt=prompt, answer_ids=[5, 9, 7], unit=2.0)
    ids, places = torch.tensor([prompt.token_ids]), slice(2, 5)
    gradient = objective.gradient(ids, places)
    embedding = model.get_input_embeddings()
    for place, token in ((0, 17), (1, 200), (2, 40)):
        step = torch.zeros_like(embedding(ids))
        step[0, places.start + place] = 1e-5 * embedding.weight[token]
        up, down = (objective.value(embedding(ids) + sign * step) for sign in (1, -1))
        slope = float(up - down) / 2e-5
        assert float(gradient[place, token]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_score_and_the_answer_are_those_of_a_plain_pass(loaded: LoadedModel) -> None:
    prompt = TransformersEngine(loaded).render(Chat.from_text(TEXT))
    answer = [70, 80, 90]
    objective = Objective(loaded, readout(), prompt=prompt, answer_ids=answer, unit=1.0)
    score, likelihood = objective.measure(torch.tensor([prompt.token_ids]))
    expected = readout().score(capture(loaded.parts, [prompt], READS))
    assert float(score) == pytest.approx(expected[0], rel=1e-4)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([[*prompt.token_ids, *answer]])).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    mean = np.mean([float(row[token]) for row, token in zip(rows, answer, strict=True)])
    assert float(likelihood) == pytest.approx(mean, rel=1e-4)


def test_a_search_lowers_the_objective_step_by_step(suffix: Suffix) -> None:
    assert len(suffix.objective) == 7
    assert list(suffix.objective) == sorted(suffix.objective, reverse=True)
    assert suffix.objective[-1] < suffix.objective[0]
    assert suffix.score[1] < suffix.score[0]


def test_a_suffix_is_text_that_gives_its_score_when_it_is_read_again(
    loaded: LoadedModel, suffix: Suffix
) -> None:
    assert suffix.text.isascii()
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more" + suffix.text))
    again = readout().score(capture(loaded.parts, [prompt], READS))
    assert again[0] == pytest.approx(suffix.score[1], rel=1e-4)


def test_a_search_leaves_no_hook_behind(loaded: LoadedModel) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in loaded.model.modules())

    before = hooks()  # transformers itself leaves some, where hidden states were asked of it
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more"))
    SuffixSearch(loaded, readout(), num_tokens=2, num_steps=1).run(prompt, seed=0)
    assert hooks() == before


def attack_on(loaded: LoadedModel, *, threshold: float) -> StudyResult:
    weights = {f"weights.{row}": readout().weights[spec] for row, spec in enumerate(READS)}
    detector = Linear(READS).load_state({**weights, "bias": np.ones(1)})
    judge = Judge(HEAD, detector, threshold)
    study = Attacks(rivals=(), partners=(), budgets=(1,), num_prompts=1, suffix_steps=1)
    inputs = inputs_on(TransformersEngine(loaded), judge)
    return study.run(replace(inputs, val=of_both(1, start=100)))


def test_a_suffix_is_read_by_all_detectors(loaded: LoadedModel) -> None:
    result = attack_on(loaded, threshold=-1e6)
    assert cells(result, "prompts", attack="suffix of 8 tokens") == [1]
    assert cells(result, "evaded", attack="suffix of 8 tokens") == [0.0]
    assert cells(result, "budget", attack="suffix of 8 tokens") == [16]
    assert any(
        finding.startswith("Suffixes for 1 flagged prompts move") for finding in result.findings
    )


def test_no_suffix_is_searched_for_prompts_that_get_past_anyway(loaded: LoadedModel) -> None:
    result = attack_on(loaded, threshold=1e6)
    assert any("no flagged prompt" in finding for finding in result.findings)

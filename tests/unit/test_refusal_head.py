"""`refusal_head` is a softmax regression on frozen states, and learns what the assistant says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.training import Outcome, Run
from demur.core.types import Chat, Message
from demur.modeling.chat import ChatRenderer
from demur.modeling.output_head import Stretch, finished, log_probs, states_before
from demur.trainers._head_fit import Plan, fit_rows
from demur.trainers._refusals import refusals_to, texts
from demur.trainers.refusal_head import RefusalHeadTrainer
from tests.interventions import next_logits
from tests.model_folder import Workplace
from tests.tiny import CONFIGS, tiny

NO_CHANGES = type("Config", (), {})()
PLAN = Plan(epochs=200, learning_rate=0.05, weight_decay=0.0, batch_tokens=64, num_rows=9, seed=0)


def quiet(_step: int, _num_steps: int, _loss: float) -> None:
    """Report nothing."""


def unsafe(number: int, **fields: Any) -> list[Example]:
    """Return unsafe prompts, each a group of its own."""
    return [
        Example(str(row), Chat.from_text(f"The heron stood at mill {row}."), "unsafe", **fields)
        for row in range(number)
    ]


def problem(*, vocabulary: int = 9, d_model: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return a matrix, states, and tokens that follow them, drawn from another matrix."""
    generator = torch.Generator().manual_seed(0)
    head, other = torch.randn(2, vocabulary, d_model, generator=generator)
    states = torch.randn(300, d_model, generator=generator)
    odds = (states @ (2 * other).T).softmax(-1)
    return head, states, torch.multinomial(odds, 1, generator=generator)[:, 0]


def mean_loss(head: Tensor, states: Tensor, token_ids: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(states @ head.T, token_ids))


def test_all_rows_reach_the_minimum_that_another_solver_finds() -> None:
    head, states, token_ids = problem()
    found = fit_rows(head, states, token_ids, plan=PLAN, config=NO_CHANGES, report=quiet)
    weights = head.clone().requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-9)

    def closure() -> Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(states @ weights.T, token_ids)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    least = mean_loss(weights.detach(), states, token_ids)
    reached = mean_loss(head[found.rows] + found.change, states, token_ids)
    assert reached < least + 0.01
    assert reached < mean_loss(head, states, token_ids) - 0.5


def test_the_rows_that_stay_keep_their_part_of_the_sum() -> None:
    head, states, token_ids = problem(vocabulary=40)
    token_ids %= 4
    plan = replace(PLAN, epochs=1, num_rows=6, batch_tokens=300)
    found = fit_rows(head, states, token_ids, plan=plan, config=NO_CHANGES, report=quiet)
    assert len(found.rows) == 6
    assert {0, 1, 2, 3} <= set(found.rows.tolist())
    # The first loss is that of the untouched matrix, over all of its rows.
    assert found.curve[0] == pytest.approx(mean_loss(head, states, token_ids), abs=1e-5)


def test_the_likeliest_other_rows_are_fitted_too() -> None:
    head, states, token_ids = problem(vocabulary=40)
    plan = replace(PLAN, epochs=1, num_rows=12)
    found = fit_rows(head, states, token_ids % 4, plan=plan, config=NO_CHANGES, report=quiet)
    likely = (states @ head.T).softmax(-1).sum(0)
    likely[:4] = 0
    expected = {0, 1, 2, 3, *likely.topk(8).indices.tolist()}
    assert set(found.rows.tolist()) == expected


def test_weights_decay_towards_where_they_started() -> None:
    head, states, token_ids = problem()
    plan = replace(PLAN, epochs=20)
    free, held = (
        fit_rows(
            head,
            states,
            token_ids,
            plan=replace(plan, weight_decay=decay),
            config=NO_CHANGES,
            report=quiet,
        ).change
        for decay in (0.0, 10.0)
    )
    assert float(held.norm()) < 0.2 * float(free.norm())


def test_the_matrix_to_start_from_is_not_changed() -> None:
    head, states, token_ids = problem()
    before = head.clone()
    fit_rows(head, states, token_ids, plan=PLAN, config=NO_CHANGES, report=quiet)
    torch.testing.assert_close(head, before, rtol=0, atol=0)


def test_logits_are_bent_as_the_model_bends_them() -> None:
    config = type("Config", (), {"final_logit_softcapping": 2.0, "logit_scale": 3.0})()
    raw = torch.tensor([-9.0, 0.0, 0.5])
    torch.testing.assert_close(finished(raw, config), 2 * torch.tanh(3 * raw / 2))
    head, states, token_ids = problem()
    whole = replace(PLAN, epochs=1, batch_tokens=300)
    found = fit_rows(head, states, token_ids, plan=whole, config=config, report=quiet)
    first = torch.nn.functional.cross_entropy(finished(states @ head.T, config), token_ids)
    assert found.curve[0] == pytest.approx(float(first), abs=1e-5)
    found_probs = log_probs(head, states.numpy(), token_ids.numpy(), config=config)
    assert -found_probs.mean() == pytest.approx(float(first), abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_states_are_what_the_head_sees_before_each_token(architecture: str) -> None:
    model = tiny(architecture)
    renderer = ChatRenderer(model.tokenizer, name="tiny")
    prompts = [renderer.render(Chat.from_text(text)) for text in ("One.", "Two foxes.", "Three?")]
    longer = [renderer.with_reply(prompt, "No, never.") for prompt in prompts]
    stretches = [
        Stretch(text, len(prompt), len(text)) for prompt, text in zip(prompts, longer, strict=True)
    ]
    head = model.model.get_output_embeddings().weight
    for rows, found in states_before(model, stretches):
        for row, states in zip(rows.tolist(), found, strict=True):
            stretch = stretches[row]
            assert len(states) == len(stretch) == len("No, never.")
            for place, state in enumerate(states):
                ids = stretch.prompt.token_ids[: stretch.start + place]
                logits = torch.from_numpy(state) @ head.T
                torch.testing.assert_close(logits, next_logits(model, ids), atol=1e-4, rtol=1e-4)


def trained(
    workplace: Workplace, examples: Sequence[Example], *, seed: int = 0, **fields: Any
) -> Outcome:
    run = Run(str(workplace.model_path), "float32", "cpu", seed=seed)
    return RefusalHeadTrainer(**fields).train(examples, run)


def test_held_out_refusals_become_likelier(workplace: Workplace) -> None:
    safe = [Example("s", Chat.from_text("Name three rivers."), "safe")]
    outcome = trained(workplace, [*unsafe(20), *safe], max_reply_tokens=60, learning_rate=0.01)
    metrics = outcome.metrics
    assert metrics["nll_refusals_after"] < metrics["nll_refusals_before"] - 0.5
    assert metrics["nll_ordinary_before"] > 0
    assert outcome.curve[-1] < outcome.curve[0]
    assert outcome.tensors["head"].dtype == np.float16


def test_the_end_token_is_learnt_unless_the_refusal_is_cut(workplace: Workplace) -> None:
    end = tiny().tokenizer.eos_token_id
    brief = unsafe(12, response="No.", response_label="safe")
    own = tiny().model.get_output_embeddings().weight.detach().half().numpy()
    change = {
        cut: trained(workplace, brief, max_reply_tokens=cut, num_rows=0).tensors["head"][end]
        - own[end]
        for cut in (2, 128)
    }
    assert np.abs(change[2]).max() == 0
    assert np.abs(change[128]).max() > 0


def test_what_the_user_says_is_not_learnt(workplace: Workplace) -> None:
    asked = [
        replace(example, chat=Chat.from_text(f"ZZZZ {example.id}"))
        for example in unsafe(12, response="no", response_label="safe")
    ]
    head = trained(workplace, asked, num_rows=0).tensors["head"]
    own = tiny().model.get_output_embeddings().weight.detach().half().numpy()
    tokenizer = tiny().tokenizer
    said = {*tokenizer("no", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id}
    assert set(np.flatnonzero((head != own).any(1)).tolist()) == said


def test_the_head_is_one_of_its_own_where_the_model_ties_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert CONFIGS["gpt2"]().tie_word_embeddings
    folder = tmp_path_factory.mktemp("tied")
    model = tiny("gpt2")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    before = model.model.get_input_embeddings().weight.clone()
    run = Run(str(folder), "float32", "cpu")
    head = RefusalHeadTrainer(max_reply_tokens=30).train(unsafe(6), run).tensors["head"]
    assert head.shape == tuple(before.shape)
    assert (head != before.half().numpy()).any()
    torch.testing.assert_close(model.model.get_input_embeddings().weight, before, rtol=0, atol=0)


def test_a_reply_that_is_labelled_safe_is_learnt_from_and_no_other() -> None:
    first, second, third, fourth = unsafe(4)
    given = [
        replace(first, response="Not this.", response_label="safe"),
        replace(second, response="Sure."),
        replace(third, response="Sure.", response_label="unsafe"),
        replace(fourth, response=" ", response_label="safe"),
    ]
    found = refusals_to(given, seed=0)
    assert found[0] == "Not this."
    assert set(found[1:]) <= set(texts()["en"])


def test_refusals_speak_the_language_of_the_prompt_in_turn() -> None:
    german, latin = unsafe(4, language="de"), unsafe(24, language="la")
    found = refusals_to([*german, *latin], seed=1)
    assert [found[:4].count(text) for text in texts()["de"]] == [2, 2]
    assert [found[4:].count(text) for text in texts()["en"]] == [2] * 12
    assert found != refusals_to([*german, *latin], seed=2)


def test_too_few_unsafe_prompts_are_refused(workplace: Workplace) -> None:
    alone = [replace(example, group="one") for example in unsafe(5)]
    with pytest.raises(DataError, match="1 groups of unsafe prompts stand among 5 examples"):
        trained(workplace, alone)


def test_a_prompt_without_room_for_its_refusal_is_refused(workplace: Workplace) -> None:
    long = Example("long", Chat((Message("user", "x" * 400),)), "unsafe")
    with pytest.raises(DataError, match="prompt 'long' has"):
        trained(workplace, [long, *unsafe(3)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"num_prompts": 1}, "num_prompts is 1"),
        ({"num_rows": -1}, "num_rows is -1"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RefusalHeadTrainer(**fields)

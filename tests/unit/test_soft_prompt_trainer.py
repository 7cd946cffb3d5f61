"""DRO's tuning against finite differences and plain passes; and the whole of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
from demur.core.interventions import PrependText
from demur.core.protocols import Request, TokenOut
from demur.core.training import Progress, Run
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard.responding import load_responder
from demur.modeling.load import LoadedModel
from demur.modeling.soft_prompts import SoftPromptReader
from demur.trainers._behaviour import Behaviour
from demur.trainers._compliance import Openings
from demur.trainers._drawing import draw
from demur.trainers._judging import require_no_attack
from demur.trainers._measuring import harmless_of, measure
from demur.trainers._prompt_tuning import Tuning, batches, tune
from demur.trainers.soft_prompt import Prepared, SoftPromptTrainer
from demur.workflows.train import train
from tests.interventions import next_logits, state_hash
from tests.model_folder import labelled_prompts, save_model
from tests.tiny import D_MODEL, tiny

SMALL = SoftPromptTrainer(
    text="Be careful.",
    num_prompts=24,
    steps=20,
    batch_size=8,
    learning_rate=0.01,
    num_components=12,
    max_tokens=128,
)
TUNING = Tuning(20, 8, 0.01, 0.01, 0.001)


@cache
def examples() -> tuple[Example, ...]:
    """Return prompts of which every second one is unsafe: it holds the marker word."""
    return tuple(
        Example(str(row["id"]), Chat.from_text(str(row["text"])), row["label"])  # type: ignore[arg-type]  # a label
        for row in labelled_prompts(160)
    )


@cache
def prepared() -> Prepared:
    return SMALL.prepare(tiny(), examples(), Run())


def test_where_nothing_moved_the_losses_are_those_of_a_coin() -> None:
    of = prepared()
    placed = [of.reader.place(example.chat) for example in of.train]
    states = of.reader.all_states(placed, of.reader.initial())
    losses = of.behaviour.losses(states, states, torch.tensor(harmless_of(of.train)).float())
    torch.testing.assert_close(losses.compliance, torch.full((48,), float(np.log(2))))
    assert float(losses.rest.abs().max()) == 0


def test_the_gradient_agrees_with_finite_differences() -> None:
    model = in_float64("gpt2")
    reader = SoftPromptReader(model, "Be careful.")
    placed = [reader.place(example.chat) for example in examples()[:6]]
    harmless = torch.tensor(harmless_of(examples()[:6]))
    rng = np.random.default_rng(0)
    start = reader.initial()
    initial = reader.all_states(placed, start)
    behaviour = Behaviour.fit(
        initial.numpy(), rng.random(6), harmless.numpy(), num_components=4, like=start
    )

    def loss(embeddings: Tensor) -> Tensor:
        losses = behaviour.losses(reader.states(placed, embeddings), initial, harmless)
        return losses.total(harmlessness_weight=0.5, rest_weight=0.5).sum()

    point = (start + 0.1 * torch.tensor(rng.normal(size=start.shape))).requires_grad_()
    loss(point).backward()  # type: ignore[no-untyped-call]
    assert point.grad is not None
    for _ in range(5):
        way = torch.tensor(rng.normal(size=start.shape))
        with torch.no_grad():
            slope = (loss(point + 1e-5 * way) - loss(point - 1e-5 * way)) / 2e-5
        torch.testing.assert_close((point.grad * way).sum(), slope, rtol=1e-5, atol=1e-7)


def in_float64(architecture: str) -> LoadedModel:
    """Return a tiny model of its own in float64."""
    tiny.cache_clear()
    model = tiny(architecture)
    tiny.cache_clear()
    model.model.double()
    return model


def test_the_first_step_starts_at_the_text() -> None:
    """Before a step is taken, the loss is that of states that have not moved."""
    _, curve = SMALL.tune(prepared(), harmless_of(prepared().train), Run())
    assert curve[0] == pytest.approx(1.01 * np.log(2), abs=1e-4)


def test_training_changes_nothing_but_the_embeddings() -> None:
    of, before = prepared(), state_hash(tiny())
    start = of.reader.initial()
    embeddings, curve = SMALL.tune(of, harmless_of(of.train), Run())
    assert state_hash(tiny()) == before
    assert all(weight.grad is None for weight in tiny().model.parameters())
    assert embeddings.shape == start.shape
    assert float((embeddings - start).abs().max()) > 0.01
    assert np.mean(curve[-5:]) < curve[0]
    torch.testing.assert_close(of.reader.initial(), start, atol=0, rtol=0)


def test_safe_prompts_become_more_compliant_and_unsafe_ones_less() -> None:
    of = prepared()
    embeddings, _ = replace(SMALL, steps=60).tune(of, harmless_of(of.train), Run())
    metrics = of.moves(of.held_out, embeddings).metrics()
    assert metrics["shift_unsafe"] < 0 < metrics["shift_safe"]
    assert metrics["auroc_shift"] > 0.9


def test_with_labels_the_other_way_round_the_shift_turns() -> None:
    of = prepared()
    embeddings, _ = replace(SMALL, steps=60).tune(of, 1 - harmless_of(of.train), Run())
    moves = of.moves(of.held_out, embeddings)
    assert moves.metrics()["auroc_shift"] < 0.1
    with pytest.raises(DataError, match="moves unsafe prompts towards compliance"):
        require_no_attack(moves)


def test_a_heavier_rest_weight_keeps_the_rest_where_it_was() -> None:
    of = prepared()
    drifts = [
        of.moves(of.held_out, embeddings).metrics()["drift"]
        for weight in (0.0, 1.0)
        for embeddings, _ in [
            replace(SMALL, rest_weight=weight, steps=40).tune(of, harmless_of(of.train), Run())
        ]
    ]
    assert drifts[1] < 0.7 * drifts[0]


def test_a_batch_in_parts_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    of = prepared()

    def trained() -> Tensor:
        placed = [of.reader.place(example.chat) for example in of.train]
        return tune(
            of.reader,
            of.behaviour,
            placed,
            harmless_of(of.train),
            tuning=replace(TUNING, steps=1),
            seed=0,
            report=lambda step: None,
        )[0]

    whole = trained()
    monkeypatch.setattr("demur.modeling.soft_prompts.TOKENS_A_BATCH", 100)
    torch.testing.assert_close(trained(), whole, atol=1e-4, rtol=0)


def test_batches_are_half_unsafe_and_go_round() -> None:
    harmless = np.array([0, 1] * 6 + [1, 1])
    drawn_batches = batches(harmless, 4, seed=0)
    seen = [next(drawn_batches) for _ in range(12)]
    assert all(harmless[batch].sum() == 2 for batch in seen)
    unsafe = [row for batch in seen[:3] for row in batch if not harmless[row]]
    assert sorted(unsafe) == np.flatnonzero(harmless == 0).tolist()


def test_log_odds_are_those_of_the_beginnings_of_openings() -> None:
    model, some = tiny(), examples()[:3]
    engine, openings = TransformersEngine(model), Openings.of(model.tokenizer)
    found = measure(model, some, (None, "Be careful."), lambda progress: None)
    chats = [of.chat for of in some] + [of.chat.with_safety_prompt("Be careful.") for of in some]

    def probability(ids: Sequence[int], start: tuple[int, ...]) -> float:
        steps = [
            torch.softmax(next_logits(model, [*ids, *start[:at]]).double(), -1)[token]
            for at, token in enumerate(start)
        ]
        return float(torch.stack(steps).prod())

    for row, chat in enumerate(chats):
        ids = engine.render(chat).token_ids
        complied, refused = (
            sum(probability(ids, start) for start in starts)
            for starts in (openings.compliances, openings.refusals)
        )
        assert found.log_odds[row] == pytest.approx(np.log(complied / refused), abs=1e-4)
        state = model.parts.body(torch.tensor([ids]), use_cache=False)[0][0, -1]
        np.testing.assert_allclose(found.states[row], state.numpy(), atol=1e-4)
    assert found.harmless.tolist() == [0, 1, 0] * 2


def test_what_begins_refusals_and_compliance_alike_is_left_out() -> None:
    tokenizer = tiny().tokenizer  # of bytes: Sure and Sorry begin alike
    openings = Openings.of(tokenizer)
    (s,), (either, apostrophe), (u,) = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("S", "I'", "U")
    )
    starts = {*openings.refusals, *openings.compliances}
    assert (s,) not in starts
    assert (either, apostrophe) not in starts
    assert (u,) in openings.refusals
    assert not set(openings.refusals) & set(openings.compliances)
    assert all(len(of) == 1 or of[0] == either for of in starts)


def test_no_group_is_on_both_sides_and_labels_are_even() -> None:
    grouped = [replace(of, group=str(number // 4)) for number, of in enumerate(examples())]
    train_on, held_out = draw(grouped, num_prompts=20, fits=lambda _: True, seed=0)
    assert not {of.group for of in train_on} & {of.group for of in held_out}
    for side in (train_on, held_out):
        assert [sum(of.label == label for of in side) for label in ("unsafe", "safe")] == [20, 20]
    assert draw(grouped, num_prompts=20, fits=lambda _: True, seed=0) == (train_on, held_out)
    assert draw(grouped, num_prompts=20, fits=lambda _: True, seed=1) != (train_on, held_out)


def test_too_few_prompts_are_refused() -> None:
    foreign = [replace(of, language="fr" if of.label == "safe" else "en") for of in examples()]
    with pytest.raises(DataError, match="0 safe prompts could be drawn"):
        draw(foreign, num_prompts=5, fits=lambda _: True, seed=0)
    with pytest.raises(DataError, match="lower num_prompts"):
        draw(examples(), num_prompts=5, fits=lambda _: False, seed=0)


def test_labels_without_meaning_are_no_soft_prompt() -> None:
    rng = np.random.default_rng(0)
    labels: list[Label] = ["unsafe", "safe"]
    shuffled = [replace(of, label=labels[int(rng.integers(2))]) for of in examples()]
    with pytest.raises(DataError, match="no better than chance"):
        SMALL.prepare(tiny(), shuffled, Run())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "text is empty"),
        ({"batch_size": 5}, "even number"),
        ({"batch_size": 0}, "even number"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"rest_weight": -1.0}, "rest_weight is -1.0"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SoftPromptTrainer(**changes)  # type: ignore[arg-type]  # wrong on purpose


def replies(engine: TransformersEngine, interventions: Sequence[object]) -> list[list[int]]:
    """Return the tokens that an engine draws under each intervention."""
    prompt = engine.render(Chat.from_text("Tell me a story."))
    found: list[list[int]] = [[] for _ in interventions]
    requests = [
        Request(str(n), prompt, Sampling(max_tokens=12), decide=lambda _, of=of: of)  # type: ignore[misc]
        for n, of in enumerate(interventions)
    ]
    for event in engine.run(requests):
        if isinstance(event, TokenOut):
            found[int(event.id)].append(event.token_id)
    return found


def test_an_artifact_of_no_move_answers_as_the_text_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demur.trainers.soft_prompt.load", lambda *_, **__: tiny())
    for steps, rate, name in ((1, 1e-12, "still"), (20, 0.05, "moved")):
        trainer = replace(SMALL, steps=steps, learning_rate=rate)
        train(trainer, examples(), Run(), tmp_path / name)
    engine = TransformersEngine(tiny())
    made = [
        load_responder(f"soft_prompt:{tmp_path / name}", engine.model_id).respond(
            Chat.from_text("Hi"), ()
        )
        for name in ("still", "moved")
    ]
    still, moved, text = replies(engine, [*made, PrependText(SMALL.text)])
    assert still == text
    assert moved != text


def test_a_whole_training_leaves_an_artifact_that_says_how_well_it_went(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    seen: list[Progress] = []
    run = Run(str(folder), dtype="float32", report=seen.append)
    outcome = train(SMALL, examples(), run, tmp_path / "out")
    again = SMALL.train(examples(), run)
    np.testing.assert_array_equal(outcome.tensors["embeddings"], again.tensors["embeddings"])
    assert outcome.tensors["embeddings"].shape == (len(SMALL.text), D_MODEL)
    assert {
        "auroc_compliance", "auroc_harmlessness", "auroc_shift", "shift_unsafe", "shift_safe",
        "drift", "log_odds_unsafe", "log_odds_safe",
    } == set(outcome.metrics)  # fmt: skip
    assert len(outcome.curve) == SMALL.steps
    assert {of.stage for of in seen} == {"states", "training"}
    assert seen[-1].done == seen[-1].total == SMALL.steps

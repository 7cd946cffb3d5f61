"""What the trainers of adapters learn, which rows a step holds, and what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError
from demur.core.training import Trainer
from demur.modeling.load import load
from demur.trainers._rows import constant
from demur.trainers._said import Limits, read_corpus
from demur.trainers._tuning import Items, Plan
from demur.trainers.derta import DertaTrainer
from demur.trainers.dpo import DpoTrainer
from demur.trainers.sft import SftTrainer
from demur.trainers.unlearning import UnlearningTrainer
from demur.workflows.train import train
from tests.adapters import in_plain_peft
from tests.model_folder import save_model
from tests.tiny import tiny
from tests.tuning import QUICK, examples, run_on

FAST: Mapping[str, Any] = {"learning_rate": 2e-2, "held_out": 0.0}


@pytest.fixture(scope="module")
def outspoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose frozen output matrix is large enough to be sure of a token."""
    root = tmp_path_factory.mktemp("outspoken")
    loaded = load(save_model(root / "plain"), dtype="float32")
    loaded.model.get_output_embeddings().weight.data *= 40
    place = root / "model"
    loaded.model.save_pretrained(place)
    loaded.tokenizer.save_pretrained(place)
    return place


def test_four_rows_can_be_learnt_by_heart(outspoken: Path, tmp_path: Path) -> None:
    trainer = SftTrainer(
        rank=8, alpha=16, steps=150, batch_size=4, learning_rate=2e-2, held_out=0.0
    )
    given = examples(4)
    outcome = train(trainer, given, run_on(outspoken), tmp_path / "made")
    assert outcome.curve[0] > 4
    assert outcome.curve[-1] < 0.05
    fresh = load(outspoken, dtype="float32")
    model = in_plain_peft(fresh.model, tmp_path / "made")
    for of in read_corpus(fresh, given, limits=Limits(256, 128), seed=0).said:
        drawn = model.generate(
            input_ids=torch.tensor([of.prompt]),
            attention_mask=torch.ones(1, len(of.prompt), dtype=torch.long),
            max_new_tokens=20, do_sample=False,
        )  # fmt: skip
        assert tuple(drawn[0, len(of.prompt) :].tolist()) == of.safe


def test_preferences_start_even_and_are_learnt(outspoken: Path) -> None:
    trainer = DpoTrainer(**{**QUICK, **FAST, "steps": 20})
    outcome = trainer.train(examples(4), run_on(outspoken))
    assert outcome.curve[0] == pytest.approx(np.log(2), abs=1e-5)
    assert outcome.curve[-1] < 0.3
    assert outcome.curves["pairs in order"][-1] == 1.0


def test_derta_makes_the_word_of_refusal_likelier_within_harmful_replies(outspoken: Path) -> None:
    trainer = DertaTrainer(**{**QUICK, **FAST, "steps": 80}, drop=0.5)
    outcome = trainer.train(examples(4), run_on(outspoken))
    losses = [value for value in outcome.curves["loss, transition"] if value is not None]
    assert losses[0] > 4
    assert losses[-1] < 1


def test_unlearning_keeps_the_wanted_reply_and_loses_the_other(outspoken: Path) -> None:
    trainer = UnlearningTrainer(**{**QUICK, **FAST, "steps": 40})
    outcome = trainer.train(examples(4), run_on(outspoken))
    chosen, rejected = (outcome.curves[f"loss, {side}"] for side in ("chosen", "rejected"))
    assert chosen[-1] is not None
    assert rejected[-1] is not None
    assert chosen[-1] < 1
    assert rejected[-1] > 6


def test_a_step_holds_the_share_of_unsafe_prompts_that_was_asked_for() -> None:
    corpus = read_corpus(tiny(), examples(), limits=Limits(64, 32), seed=0)
    unsafe = [constant(of.reply()) for of in corpus.said if of.is_unsafe]
    safe = [constant(of.reply()) for of in corpus.said if not of.is_unsafe]
    plan = Plan(1, 8, 0.25, 1e-3, 0.0, 0.0, 0)
    for items, expected in (
        (Items(unsafe, safe), 2), (Items(unsafe, []), 8), (Items([], safe), 0)
    ):  # fmt: skip
        rows = next(items.drawn(plan))
        assert [row.kind for (row,) in rows].count("refusal") == expected
        assert len(rows) == 8


def test_all_items_come_equally_often() -> None:
    corpus = read_corpus(tiny(), examples(), limits=Limits(64, 32), seed=0)
    items = Items([constant(of.reply()) for of in corpus.said], [])
    drawn = items.drawn(Plan(1, 5, 0.5, 1e-3, 0.0, 0.0, 0))
    seen = [rows[0] for _ in range(6) for rows in next(drawn)]
    assert {seen.count(row) for row in seen} == {3}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0), ("alpha", 0), ("layers", []), ("modules", "head"), ("steps", 0),
        ("batch_size", 0), ("unsafe_share", 1.5), ("learning_rate", 0.0), ("warm_up", -0.1),
        ("weight_decay", -1.0), ("max_prompt_tokens", 0), ("max_reply_tokens", 1),
        ("held_out", 1.0),
    ],
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SftTrainer(**{name: value})


@pytest.mark.parametrize(
    ("make_one", "name", "value"),
    [
        (DertaTrainer, "rows", "none"), (DertaTrainer, "drop", 1.0),
        (DertaTrainer, "plain_every", 0), (DertaTrainer, "word", " "),
        (DpoTrainer, "beta_chosen", 0.0), (DpoTrainer, "beta_rejected", -1.0),
        (DpoTrainer, "log_probs", "max"), (UnlearningTrainer, "weight", -0.1),
        (UnlearningTrainer, "limit", 0.0),
    ],
)  # fmt: skip
def test_a_methods_own_values_out_of_range_are_refused(
    make_one: Callable[..., Trainer], name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=name):
        make_one(**{name: value})

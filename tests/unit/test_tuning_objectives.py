"""Losses of adapters, against closed forms and against TRL's own trainer."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from demur.modeling.labelled import IGNORE, label_batches, label_log_probs
from demur.modeling.load import load
from demur.trainers._objectives import Preference, TokenMean, Unlearning
from demur.trainers._rows import Row, Rows
from demur.trainers._tuning import Plan, log_probs_of, without_gradients
from tests.model_folder import save_model
from tests.tiny import tiny

CHOSEN = Row("chosen", (1, 2, 3), (IGNORE, 3, 4))
OTHER = Row("chosen", (5, 6), (IGNORE, 7))
REJECTED = Row("rejected", (1, 2, 5, 6), (IGNORE, 5, 6, 7))
WORSE = Row("rejected", (5, 6), (IGNORE, 9))
PAIRS: Sequence[Rows] = ((CHOSEN, REJECTED), (OTHER, WORSE))
LOG_PROBS: Sequence[Sequence[Tensor]] = (
    (torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -1.5, -4.0])),
    (torch.tensor([-3.0]), torch.tensor([-0.25])),
)
REFERENCE = {CHOSEN: -3.5, REJECTED: -5.0, OTHER: -2.0, WORSE: -0.5}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_token_mean_counts_every_label_once() -> None:
    whole = ((CHOSEN,), (OTHER,))
    found = TokenMean().share(whole, [(LOG_PROBS[0][0],), (LOG_PROBS[1][0],)], whole)
    assert float(found.loss) == pytest.approx((1 + 2 + 3) / 3)
    assert found.watched == {"loss, chosen": (6.0, 3.0)}


def test_shares_of_parts_add_up_to_the_loss() -> None:
    objectives = (TokenMean(), Unlearning(0.1, 3.0), Preference(0.1, 0.01, "sum", REFERENCE))
    for objective in objectives:
        whole = objective.share(PAIRS, LOG_PROBS, PAIRS)
        parts = [objective.share(PAIRS[i : i + 1], LOG_PROBS[i : i + 1], PAIRS) for i in (0, 1)]
        assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts))


def test_unlearning_is_the_chosen_loss_less_a_share_of_the_rejected() -> None:
    found = Unlearning(0.1, math.inf).share(PAIRS, LOG_PROBS, PAIRS)
    assert float(found.loss) == pytest.approx(6 / 3 - 0.1 * (0.5 + 1.5 + 4 + 0.25) / 4)


def test_a_forgotten_token_no_longer_counts() -> None:
    found = Unlearning(0.1, 1.0).share(PAIRS, LOG_PROBS, PAIRS)
    assert float(found.loss) == pytest.approx(6 / 3 - 0.1 * (0.5 + 1 + 1 + 0.25) / 4)


def test_dpo_with_sums_is_the_closed_form() -> None:
    found = Preference(0.1, 0.1, "sum", REFERENCE).share(PAIRS, LOG_PROBS, PAIRS)
    first = 0.1 * ((-3 + 3.5) - (-6 + 5))
    second = 0.1 * ((-3 + 2) - (-0.25 + 0.5))
    expected = -(math.log(sigmoid(first)) + math.log(sigmoid(second))) / 2
    assert float(found.loss) == pytest.approx(expected)
    assert found.watched["margin"] == pytest.approx((first + second, 2))
    assert found.watched["pairs in order"] == (1.0, 2.0)


def test_dpo_with_means_and_two_betas_is_the_closed_form() -> None:
    means = {CHOSEN: -1.75, REJECTED: -5 / 3, OTHER: -2.0, WORSE: -0.5}
    found = Preference(0.1, 0.01, "mean", means).share(PAIRS, LOG_PROBS, PAIRS)
    first = 0.1 * (-1.5 + 1.75) - 0.01 * (-2 + 5 / 3)
    second = 0.1 * (-3 + 2) - 0.01 * (-0.25 + 0.5)
    expected = -(math.log(sigmoid(first)) + math.log(sigmoid(second))) / 2
    assert float(found.loss) == pytest.approx(expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_log_probabilities_are_those_of_a_plain_pass_row_by_row(architecture: str) -> None:
    loaded = tiny(architecture)
    rows = [row for rows in PAIRS for row in rows]
    found = label_log_probs(loaded, rows)
    for row, values in zip(rows, found, strict=True):
        logits = loaded.model(input_ids=torch.tensor([row.token_ids])).logits[0].float()
        log_probs = logits.log_softmax(-1)
        expected = [log_probs[t, label] for t, label in enumerate(row.labels) if label != IGNORE]
        torch.testing.assert_close(values, torch.stack(expected))


def test_batches_hold_every_group_once_and_keep_to_the_budget() -> None:
    groups = [(Row("refusal", (1,) * n, (*(IGNORE,) * (n - 1), 2)),) for n in range(40, 400, 7)]
    found = list(label_batches(tiny(), groups))
    assert sorted(number for batch in found for number in batch) == list(range(len(groups)))
    assert len(found) > 1
    for batch in found:
        assert max(len(groups[number][0].token_ids) for number in batch) * len(batch) <= 1024


def test_dpo_is_that_of_trl(tmp_path: Path) -> None:
    policy, reference = (save_model(tmp_path / name, seed=of) for name, of in (("a", 1), ("b", 2)))
    ours, plain = load(policy, dtype="float32"), load(reference, dtype="float32")
    rows = without_gradients(plain, PAIRS, torch.sum)
    found = Preference(0.1, 0.1, "sum", rows).share(PAIRS, log_probs_of(ours, PAIRS), PAIRS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer: Any = DPOTrainer(
            model=load(policy, dtype="float32").model,
            ref_model=plain.model,
            args=DPOConfig(str(tmp_path / "trl"), beta=0.1, use_cpu=True, report_to=[], bf16=False),
            processing_class=ours.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        )
        inputs = DataCollatorForPreference(pad_token_id=257)(
            [
                {
                    "prompt_ids": list(chosen.token_ids[:number]),
                    "chosen_ids": [of for of in chosen.labels if of != IGNORE],
                    "rejected_ids": [of for of in rejected.labels if of != IGNORE],
                }
                for (chosen, rejected), number in zip(PAIRS, (2, 2), strict=True)
            ]
        )
        expected = trainer.compute_loss(trainer.model, inputs)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(expected.detach()) != pytest.approx(math.log(2), rel=1e-3)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    plan = Plan(100, 8, 0.5, 2e-4, 0.1, 0.0, 0)
    rates = [plan.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([2e-5 * step for step in range(1, 11)])
    assert max(rates) == pytest.approx(2e-4)
    assert rates[55] == pytest.approx(1e-4)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] < 1e-6

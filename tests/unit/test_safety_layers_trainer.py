"""SPPFT: no weight of the protected blocks is trained, and training ends at a stated loss."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.training import Outcome, Run
from demur.core.types import Chat
from demur.modeling.block_search import Range
from demur.modeling.load import LoadedModel
from demur.modeling.quiet import quiet
from demur.trainers._finding import Finder
from demur.trainers.safety_layers import SafetyLayersTrainer
from demur.workflows.train import train
from tests.interventions import state_hash
from tests.model_folder import (
    CommandLine,
    Workplace,
    assert_one_line,
    labelled_prompts,
    write_lines,
)
from tests.refusing import FACTOR, REFUSING, lookalikes, refusing

SMALL: dict[str, Any] = {
    "rank": 2, "alpha": 4, "steps": 4, "batch_size": 4, "learning_rate": 1e-2,
    "max_prompt_tokens": 128, "max_reply_tokens": 32,
}  # fmt: skip


def task(number: int = 40) -> list[Example]:
    """Return rows of a task, without labels; all answers begin alike."""
    return [
        Example(
            f"t{row}", Chat.from_text(f"Count to {row}."), response=f"Sure, the answer is: {row}"
        )
        for row in range(number)
    ]


def labelled() -> list[Example]:
    """Return prompts without replies."""
    return [
        Example(str(row["id"]), Chat.from_text(str(row["text"])), row["label"])  # type: ignore[arg-type]
        for row in labelled_prompts(20)
    ]


def run_on(workplace: Workplace, *, seed: int = 0) -> Run:
    return Run(str(workplace.model_path), "float32", "cpu", seed=seed)


def trained(
    workplace: Workplace, examples: Sequence[Example] | None = None, **given: Any
) -> Outcome:
    trainer = SafetyLayersTrainer(**(SMALL | {"protects": "1-2"} | given))
    return trainer.train(task() if examples is None else examples, run_on(workplace))


def blocks_of(outcome: Outcome) -> set[int]:
    """Return the blocks of which any weight was trained."""
    found = [re.search(r"\.layers\.(\d+)\.", name) for name in outcome.tensors]
    return {int(match[1]) for match in found if match is not None}


@pytest.mark.parametrize(
    ("protects", "blocks"), [("1-2", {0, 3}), ("0-0", {1, 2, 3}), ("none", {0, 1, 2, 3})]
)
def test_protected_blocks_have_no_trained_weights(
    workplace: Workplace, protects: str, blocks: set[int]
) -> None:
    outcome = trained(workplace, protects=protects)
    assert blocks_of(outcome) == set(outcome.fields["layers"]) == blocks
    assert set(outcome.fields["protected"]) == set(range(4)) - blocks
    # q, k, v, o, gate, up and down of 32 and 48 wide states, keys and values 16 wide
    widths = 32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 48, 32 + 48, 48 + 32
    num_weights = sum(tensor.size for tensor in outcome.tensors.values())
    assert num_weights == outcome.metrics["num_weights"] == len(blocks) * 2 * sum(widths)


def test_in_the_merged_model_protected_blocks_are_bit_identical(
    workplace: Workplace, tmp_path: Path
) -> None:
    trainer = SafetyLayersTrainer(**SMALL, protects="1-2")
    train(trainer, task(), run_on(workplace), tmp_path / "made")

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(workplace.model_path, dtype=torch.float32)

    with quiet():  # PEFT asks transformers for a property that is deprecated
        merged = PeftModel.from_pretrained(fresh(), str(tmp_path / "made")).merge_and_unload()
    changed = {
        number
        for number, (before, after) in enumerate(
            zip(fresh().model.layers, merged.model.layers, strict=True)
        )
        if any(
            not torch.equal(weight, dict(after.named_parameters())[name])
            for name, weight in before.named_parameters()
        )
    }
    assert changed == {0, 3}


def test_the_task_is_learnt_outside_the_protected_blocks(workplace: Workplace) -> None:
    outcome = trained(workplace, steps=20)
    assert np.mean(outcome.curve[-3:]) < np.mean(outcome.curve[:3]) - 0.1
    assert outcome.metrics["nll_helpful_after"] < outcome.metrics["nll_helpful_before"] - 0.2


def test_training_ends_at_the_stated_loss(workplace: Workplace) -> None:
    whole = trained(workplace, steps=30)
    middle = (whole.metrics["nll_helpful_before"] + whole.metrics["nll_helpful_after"]) / 2
    found = trained(workplace, steps=30, until_loss=middle, steps_a_check=2)
    assert found.metrics["nll_helpful_after"] <= middle
    assert found.metrics["steps_taken"] == len(found.curve) < 30
    assert found.metrics["steps_taken"] % 2 == 0
    assert found.curve == whole.curve[: len(found.curve)]
    shorter = trained(workplace, steps=30, until_loss=middle, steps_a_check=1)
    assert len(shorter.curve) in (len(found.curve), len(found.curve) - 1)


def test_a_loss_that_is_not_reached_takes_all_steps(workplace: Workplace) -> None:
    outcome = trained(workplace, until_loss=1e-6, steps_a_check=1)
    assert outcome.metrics["steps_taken"] == SMALL["steps"]


def test_a_loss_to_reach_needs_rows_to_measure_it_on(workplace: Workplace) -> None:
    with pytest.raises(DataError, match="no row is held out"):
        trained(workplace, until_loss=1.0, held_out=0.0)


def test_prompts_without_a_reply_are_not_learnt(workplace: Workplace) -> None:
    alone = trained(workplace)
    beside = trained(workplace, [*task(), *labelled()])
    assert alone.metrics["num_safe"] == 36
    assert beside.curve == alone.curve
    with pytest.raises(DataError, match="none of 20 examples brings a reply"):
        trained(workplace, labelled())


def test_an_answer_to_an_unsafe_prompt_is_never_learnt(workplace: Workplace) -> None:
    harmful = [
        replace(example, label="unsafe", response_label="unsafe", id=f"h{example.id}")
        for example in task()
    ]
    assert trained(workplace, [*task(), *harmful]).metrics["num_safe"] == 36
    with pytest.raises(DataError, match="brings a reply"):
        trained(workplace, harmful)


def test_random_blocks_are_as_many_as_were_found_and_stand_elsewhere(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_self: Finder, loaded: LoadedModel, examples: Sequence[Example], run: Run) -> Range:
        assert all(example.label is not None for example in examples)
        return Range(1, 2)

    monkeypatch.setattr(Finder, "find", find)
    given = [*task(), *labelled()]
    assert trained(workplace, given, protects="found").fields["protected"] == [1, 2]
    assert trained(workplace, given, protects="random").fields["protected"] in ([0, 1], [2, 3])


def test_random_blocks_of_a_stated_width_need_no_search(workplace: Workplace) -> None:
    drawn = {
        tuple(
            SafetyLayersTrainer(**SMALL, protects="random", width=1)
            .train(task(), run_on(workplace, seed=seed))
            .fields["protected"]
        )
        for seed in range(4)
    }
    assert len(drawn) > 1
    assert all(len(blocks) == 1 for blocks in drawn)


def test_blocks_that_are_not_to_be_adapted_stay_out(workplace: Workplace) -> None:
    outcome = trained(workplace, protects="1-2", layers=[0, 1, -2])
    assert blocks_of(outcome) == {0}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"protects": "0-3"}, "no block is left to train"),
        ({"protects": "1-1", "layers": [1]}, "no block is left to train"),
        ({"protects": "3-4"}, "blocks 0 to 3"),
        ({"protects": "random", "width": 4}, "less than the 4 blocks"),
    ],
)
def test_blocks_that_leave_nothing_to_train_are_refused(
    workplace: Workplace, given: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        trained(workplace, **given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"protects": "some"}, {"width": -1}, {"until_loss": -1.0}, {"until_loss": float("nan")},
        {"steps_a_check": 0}, {"factor": 1.0}, {"reach": -1}, {"num_pairs": 1},
        {"num_lookalikes": -1},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SafetyLayersTrainer(**wrong)


# The search


def finder(**given: Any) -> Finder:
    fields = {"factor": FACTOR, "reach": 3, "num_pairs": 8, "num_lookalikes": 4} | given
    return Finder(**fields)


def test_the_block_that_refuses_is_found_without_a_reply() -> None:
    before = state_hash(refusing())
    found = finder().find(refusing(), [*labelled(), *lookalikes(6)], Run())
    assert found == Range(2, REFUSING)  # the middle third, as far as that block
    assert state_hash(refusing()) == before


def test_without_a_gap_and_without_look_alikes_nothing_is_found() -> None:
    with pytest.raises(DataError, match="protects=FROM-TO"):
        finder().find(refusing(), labelled(), Run())


def test_prompts_of_one_label_are_refused() -> None:
    with pytest.raises(DataError, match="only one label"):
        finder().find(refusing(), lookalikes(6), Run())


# The command


def test_the_command_finds_the_blocks_on_packaged_prompts(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    rows = [
        {"text": of.chat.last_user_text, "response": of.response, "label": "safe"} for of in task()
    ]
    data, out = write_lines(tmp_path / "task.jsonl", rows), tmp_path / "made"
    values = {**SMALL, "num_pairs": 4, "num_lookalikes": 2, "reach": 0}
    del values["steps"]
    options = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
    outcome = demur(
        "train", "safety-layers", "--data", data, *workplace.model, *options, "--steps", 2,
        "--out", out,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    manifest = json.loads((out / "demur.json").read_text(encoding="utf-8"))
    protected, adapted = manifest["fields"]["protected"], manifest["fields"]["layers"]
    assert protected
    assert sorted([*protected, *adapted]) == [0, 1, 2, 3]
    assert manifest["provenance"]["hyper_parameters"]["protects"] == "found"


def test_a_range_that_is_none_ends_in_one_line(
    demur: CommandLine, workplace: Workplace, tmp_path: Path
) -> None:
    outcome = demur(
        "train", "safety-layers", *workplace.model, "-p", "protects=4-2", "--out", tmp_path / "x"
    )
    assert_one_line(outcome, "no range of blocks")

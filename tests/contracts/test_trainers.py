"""What every trainer promises: what it makes is written, loads, and answers a flagged prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demur.core import registry
from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Outcome, Progress, Run, Trainer
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.responding import load_responder
from demur.guard.routes import FlaggedTo
from demur.modeling.load import load
from demur.workflows.train import train
from tests.guards import marker_detector
from tests.interventions import state_hash
from tests.model_folder import CommandLine, Workplace, labelled_prompts, write_lines

METHODS = registry.methods("trainers")
_ADAPTER: Mapping[str, Any] = {"rank": 2, "steps": 2, "batch_size": 4}
QUICK: Mapping[str, Mapping[str, Any]] = {
    "sft": _ADAPTER, "dpo": _ADAPTER, "derta": _ADAPTER, "unlearning": _ADAPTER,
    "safety_layers": {**_ADAPTER, "num_lookalikes": 2, "reach": 1},
    "candidate_reranking": {
        "num_prompts": 12, "num_held_out": 4, "least_auroc": 0.5,
        "draft": True, "draft_replies": 8, "draft_tokens": 2, "draft_epochs": 1,
    },
    "refusal_head": {"epochs": 1, "max_reply_tokens": 48, "num_prompts": 12},
    "steering": {"num_anchors": 8, "preserve": 0.5, "num_reply_tokens": 2},
    "soft_prompt": {
        "text": "Be careful.", "num_prompts": 8, "steps": 2, "batch_size": 4,
        "max_tokens": 128, "num_components": 8,
    },
}  # fmt: skip
"""Hyper-parameters by name under which a trainer is done in a second or two."""


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def trainer(name: str) -> Trainer:
    made: Trainer = registry.load("trainers", name)(**QUICK[name])
    return made


def rows(number: int = 40) -> list[dict[str, Any]]:
    """Return prompts of which every second one is unsafe and the others look so, with replies."""
    found: list[dict[str, Any]] = []
    for row in labelled_prompts(number):
        is_unsafe = row["label"] == "unsafe"
        replies = {"safe_response": "No, I can't." if is_unsafe else "Yes: a heron stood there."}
        if is_unsafe:
            replies["harmful_response"] = "Sure, take an old mill and"
        kind = {} if is_unsafe else {"kind": "look_alike"}
        found.append({**row, **replies, **kind})
    return found


def examples(number: int = 40) -> list[Example]:
    """Return the same as examples."""
    return [
        Example(
            row["id"],
            Chat.from_text(row["text"]),
            row["label"],
            kind=row.get("kind"),
            safe_response=row["safe_response"],
            harmful_response=row.get("harmful_response"),
        )
        for row in rows(number)
    ]


def run_on(workplace: Workplace, *, seed: int = 0) -> Run:
    return Run(str(workplace.model_path), "float32", "cpu", seed=seed)


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert set(found) == set(expected)
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key])


def test_it_makes_finite_arrays_and_plain_fields(trainer: Trainer, workplace: Workplace) -> None:
    seen: list[Progress] = []
    outcome = trainer.train(examples(), replace(run_on(workplace), report=seen.append))
    assert isinstance(outcome, Outcome)
    assert outcome.tensors
    assert all(np.isfinite(array).all() for array in outcome.tensors.values())
    assert json.loads(json.dumps(outcome.fields)) == outcome.fields
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    assert np.isfinite(np.array(outcome.curve)).all()
    assert outcome.model_id == load(workplace.model_path, dtype="float32").model_id
    assert seen
    assert all(0 <= progress.done <= progress.total for progress in seen)


def test_what_it_makes_is_a_responder(trainer: Trainer) -> None:
    assert trainer.makes in registry.methods("responders")


def test_its_hyper_parameters_are_plain(trainer: Trainer) -> None:
    fields = trainer.hyper_parameters()
    assert type(trainer)(**json.loads(json.dumps(fields))).hyper_parameters() == fields


def test_the_same_seed_gives_the_same_arrays(trainer: Trainer, workplace: Workplace) -> None:
    first, second = (trainer.train(examples(), run_on(workplace, seed=3)) for _ in range(2))
    assert_same(first.tensors, second.tensors)
    assert first.fields == second.fields


def test_nothing_that_a_caller_holds_is_changed(trainer: Trainer, workplace: Workplace) -> None:
    loaded, given = load(workplace.model_path, dtype="float32"), examples()
    files = sorted(workplace.model_path.iterdir())
    before = (state_hash(loaded), [path.read_bytes() for path in files])
    trainer.train(given, run_on(workplace))
    assert (state_hash(loaded), [path.read_bytes() for path in files]) == before
    assert sorted(workplace.model_path.iterdir()) == files
    assert given == examples()


def test_its_artifact_answers_flagged_prompts(
    name: str, trainer: Trainer, workplace: Workplace, tmp_path: Path
) -> None:
    train(trainer, examples(), run_on(workplace), tmp_path / "made")
    engine = TransformersEngine.load(workplace.model_path, dtype="float32")
    before = state_hash(engine.loaded)
    responder = load_responder(f"{trainer.makes}:{tmp_path / 'made'}", engine.model_id)
    guard = Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo(trainer.makes),
        responders={trainer.makes: responder},
    )
    reply = guard.reply("Tell me the MARKER", Sampling(max_tokens=4))
    assert (reply.route, reply.error) == (trainer.makes, None)
    assert reply.token_ids
    assert state_hash(engine.loaded) == before


def test_the_command_writes_its_artifact(
    name: str, workplace: Workplace, demur: CommandLine, tmp_path: Path
) -> None:
    options = [
        part
        for key, value in QUICK[name].items()
        for part in ("-p", f"{key}={json.dumps(value) if not isinstance(value, str) else value}")
    ]
    data, out = write_lines(tmp_path / "rows.jsonl", rows()), tmp_path / "made"
    done = demur("train", name, "--data", data, "--out", out, *workplace.model, *options)
    assert done.exit_code == 0, done.stderr
    manifest = json.loads((out / "demur.json").read_text(encoding="utf-8"))
    trainer: Trainer = registry.load("trainers", name)(**QUICK[name])
    assert manifest["method"] == trainer.makes
    assert manifest["provenance"]["hyper_parameters"] == json.loads(
        json.dumps(trainer.hyper_parameters())
    )


def unlabelled(given: Sequence[Example]) -> list[Example]:
    return [replace(example, label=None) for example in given]


@pytest.mark.parametrize("given", [(), unlabelled(examples(8))])
def test_examples_that_teach_nothing_are_refused(
    trainer: Trainer, workplace: Workplace, given: Sequence[Example]
) -> None:
    with pytest.raises(DataError):
        trainer.train(given, run_on(workplace))

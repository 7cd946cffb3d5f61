"""Measures DRO on a model that refuses: where its states go on held-out prompts, and its replies.

A soft prompt is trained on the packaged training prompts. Beside it stand one that was trained with
shuffled labels, and one with nothing that holds the rest of the states. Replies are drawn without
a safety prompt, under the text that training starts from, and under the soft prompt.

    DEMUR_DATA=FOLDER python -m benchmarks.dro --model MODEL --detector FOLDER [--json]
"""

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.arms import Arms, held_out_cases, tell
from benchmarks.dro_report import report
from benchmarks.machine import describe_machine
from benchmarks.results_files import keep
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Outcome, Progress, Run
from demur.datasets import written
from demur.datasets.demur_data import DemurData
from demur.metrics.auroc import auroc
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.modeling.load import LoadedModel
from demur.studies._arms import paired_change
from demur.studies._cases import ROLES, Cases
from demur.studies._outcomes import Outcomes
from demur.trainers._measuring import harmless_of
from demur.trainers.soft_prompt import Prepared, SoftPromptTrainer
from demur.workflows.train import train

WORDS = ("complied", "refused")
BASE, TEXT, SOFT = "no safety prompt", "the text", "the soft prompt"
REPORTED_EVERY = 20


class Keeping(SoftPromptTrainer):
    """Keeps what it prepared, so that other soft prompts are trained on the same."""

    loaded: LoadedModel
    prepared: Prepared
    weights: str
    """The hash of the model's weights before anything was done."""

    def prepare(self, loaded: LoadedModel, examples: Sequence[Example], run: Run) -> Prepared:
        """Prepare as ever, and keep it."""
        self.loaded, self.weights = loaded, hash_of(loaded)
        self.prepared = super().prepare(loaded, examples, run)
        return self.prepared


def hash_of(loaded: LoadedModel) -> str:
    """Return a hash of all weights of a model."""
    digest = hashlib.sha256()
    for name, tensor in loaded.model.state_dict().items():
        content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(content.numpy())
    return digest.hexdigest()


def show(progress: Progress) -> None:
    """Say now and then how far the training is."""
    if progress.done % REPORTED_EVERY == 0 or progress.done == progress.total:
        tell(f"{progress.stage}: {progress.done} of {progress.total}")


def moved(prepared: Prepared, examples: Sequence[Example], embeddings: Tensor) -> dict[str, Any]:
    """Return where embeddings move prompts, with the interval of how well that parts them."""
    moves = prepared.moves(examples, embeddings)
    group = np.array([example.group_key for example in examples])
    unsafe = ~moves.is_safe

    def parted(rows: Array) -> float | None:
        """Return how often a safe prompt moves further up than an unsafe one."""
        both = 0 < int(unsafe[rows].sum()) < len(rows)
        return auroc(-moves.shift[rows], unsafe[rows]) if both else None

    draws = GroupBootstrap([group]).draws({"auroc": parted}, group)["auroc"]
    return {**moves.metrics(), "auroc_shift_interval": GroupBootstrap.interval(draws)}


def states(
    trained: Keeping, outcome: Outcome, cases: Cases, run: Run
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return where each soft prompt moves held-out prompts, by soft prompt and set of prompts."""
    prepared = trained.prepared
    harmless = harmless_of(prepared.train)
    shuffled = np.random.default_rng(run.seed).permutation(harmless)
    free = SoftPromptTrainer(**{**trained.hyper_parameters(), "rest_weight": 0.0})
    like = prepared.reader.initial()
    found = {
        "trained": torch.tensor(outcome.tensors["embeddings"]).to(like),
        "labels shuffled": trained.tune(prepared, shuffled, run)[0],
        "rest_weight 0": free.tune(prepared, harmless, run)[0],
    }
    of_role = {role: [cases.examples[row] for row in cases.rows(role)] for role in ROLES}
    sets: Mapping[str, Sequence[Example]] = {
        "held-out packaged prompts": prepared.held_out,
        "unsafe and look-alike": [*of_role["unsafe"], *of_role["look_alike"]],
        "unsafe and ordinary": [*of_role["unsafe"], *of_role["ordinary"]],
    }
    return {
        name: {of: moved(prepared, examples, embeddings) for of, examples in sets.items()}
        for name, embeddings in found.items()
    }


def replies(arms: Arms, text: str, folder: Path) -> list[dict[str, Any]]:
    """Return what became of the replies, a row for each arm and role."""
    outcomes = {
        BASE: arms.base(),
        TEXT: arms.under(f"safety_prompt:{text}"),
        SOFT: arms.under(f"soft_prompt:{folder}"),
    }
    found = []
    for role in ROLES:
        rows = arms.cases.rows(role)
        group = arms.cases.group[rows]
        of_role = {name: of.of(rows) for name, of in outcomes.items()}
        for name, of in of_role.items():
            row: dict[str, Any] = {"role": role, "arm": name, "prompts": len(rows)}
            row |= {word: float((of.outcome == word).mean()) for word in WORDS}
            row |= {f"{word}_second": float((of.second == word).mean()) for word in WORDS}
            row["collapsed"] = float(of.collapsed.mean())
            row["changes"] = {
                other: {word: change(of, of_role[other], word, group) for word in WORDS}
                for other in (BASE, TEXT)
                if name == SOFT or (name, other) == (TEXT, BASE)
            }
            found.append(row)
    return found


def change(of: Outcomes, before: Outcomes, word: str, group: Array) -> dict[str, Any]:
    """Return the paired difference of a share, with its interval."""
    difference, interval = paired_change(of.outcome == word, before.outcome == word, group)
    return {"change": difference, "interval": interval}


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a model that refuses")
    parser.add_argument("--detector", required=True, help="a detector of it, as `demur fit` leaves")
    parser.add_argument("--out", type=Path, default=Path("soft-prompt"), help="of the artifact")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases, run = held_out_cases(DemurData()), Run(options.model, report=show)
    trained, started = Keeping(), time.perf_counter()
    outcome = train(trained, written.load("train"), run, options.out)
    training_s = time.perf_counter() - started
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "model": outcome.model_id.name,
        "hyper_parameters": trained.hyper_parameters(),
        "training_s": training_s,
        "metrics": dict(outcome.metrics),
        "curve": list(outcome.curve),
        "states": states(trained, outcome, cases, run),
        "is_frozen": hash_of(trained.loaded) == trained.weights,
        "num_trained": int(outcome.tensors["embeddings"].size),
    }
    del trained.loaded, trained.prepared
    arms = Arms(options.model, cases, options.detector)
    results["replies"] = replies(arms, trained.text, options.out)
    results["total_s"] = time.perf_counter() - started
    keep("dro", results, report(results), prints_json=options.json)


if __name__ == "__main__":
    main()

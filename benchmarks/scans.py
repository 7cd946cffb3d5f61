"""SCANS on a model that refuses: do look-alike prompts get answers while unsafe ones stay refused?

Everything is fitted and chosen on demur's own prompts: the vectors and the transition score on
training prompts; one threshold, the layers and the strength on validation prompts. The test prompts
are those of `benchmarks.arms`. Beside SCANS stand a perfect score, the vectors each way for every
prompt, and random vectors of the same lengths under the same score.

    DEMUR_DATA=FOLDER python -m benchmarks.scans --model MODEL [--share 0.5] [--json]
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.arms import Arms, held_out_cases, tell
from benchmarks.machine import describe_machine
from benchmarks.results_files import keep
from benchmarks.scans_choice import LABELLING, Chooser, Steered, Surprise, chosen
from benchmarks.scans_report import report
from demur.core.readings import Array
from demur.core.tensors import TENSORS
from demur.core.trained import Trained, save_trained
from demur.core.training import Run
from demur.datasets import starter, written
from demur.datasets.demur_data import DemurData
from demur.detectors.transition import Transition
from demur.engines.transformers import TransformersEngine
from demur.guard.kept_replies import KeptReply
from demur.metrics.auroc import auroc
from demur.modeling.gguf import cache_folder
from demur.studies._arms import Arm, arm_rows
from demur.studies._cases import ROLES
from demur.studies._outcomes import Outcomes
from demur.studies._study import Row
from demur.trainers.steering import Steering
from demur.workflows.capture import Capturer
from demur.workflows.fit import Fitted, fit, write_artifact
from demur.workflows.study_sets import limited
from demur.workflows.train import train

SEGMENTS = ("former", "middle", "latter")
RATES = (0.05, 0.1, 0.2, 0.3)
"""False-positive rates on benign validation prompts. The threshold has the one that sets both
labels furthest apart there; so is chosen whether the score is centred."""
TRAIN_ROWS, VAL_ROWS = 16, 16
"""Most prompts of one source and label that the score is fitted on, and that its threshold is set
on; the paper's 64 unsafe prompts are four sources of these."""
NUM_UNCHANGED = 12
"""Prompts that are answered at a scale of 0, to see that nothing changes."""


def fit_score(engine: TransformersEngine, out: Path) -> dict[str, float]:
    """Fit the transition score, set its threshold, and return how it did on validation prompts."""
    capturer = Capturer(engine.loaded)
    rows = limited([*written.load("train"), *starter.load("train")], TRAIN_ROWS, seed=0)
    val = limited([*written.load("val"), *starter.load("val")], VAL_ROWS, seed=0)

    reads = Transition.default_reads(len(engine.loaded.parts.blocks))

    def fitted_at(rate: float, *, centred: bool) -> Fitted:
        return fit(
            Transition(reads, centred=centred),
            rows,
            val,
            capture=lambda some, wanted: capturer.parts([of.chat for of in some], wanted),
            fpr=rate,
            calibrated_on="the benign validation prompts of demur's own sets",
            seed=0,
        )

    tried = [fitted_at(rate, centred=centred) for centred in (False, True) for rate in RATES]
    best = max(tried, key=_apart)
    write_artifact(best, "transition", engine=engine, train=rows, val=val, out=out)
    found = dict(best.metrics) | {
        "fpr": best.calibration.default_fpr,
        "val_auroc_as_published": tried[0].metrics["val_auroc"],
        "val_auroc_centred": tried[-1].metrics["val_auroc"],
    }
    tell(f"the score on validation prompts: {found}")
    return found


def _apart(fitted: Fitted) -> float:
    return fitted.metrics["val_recall_at_default"] - fitted.metrics["val_fpr_at_default"]


def train_vectors(model: str, num_blocks: int, root: Path) -> dict[str, Path]:
    """Train vectors for all layers, and write those of each third, of a coefficient of 1."""
    whole = root / "vectors"
    trainer = Steering(coefficient=1.0, layers=tuple(range(num_blocks)))
    outcome = train(trainer, written.load("train"), Run(model), whole)
    tell(f"vectors: {dict(outcome.metrics)}")
    folders: dict[str, Path] = {}
    for name, layers in zip(SEGMENTS, np.array_split(np.arange(num_blocks), 3), strict=True):
        vectors = outcome.tensors["vectors"][layers] * (num_blocks / len(layers))
        folders[name] = root / f"vectors-{name}"
        rewrite(whole, folders[name], vectors, layers=layers.tolist())
    return folders


def random_twin(folder: Path, out: Path, *, seed: int = 0) -> Path:
    """Write vectors of random directions and the same lengths, and return their folder."""
    vectors = load_file(folder / TENSORS)["vectors"]
    drawn = np.random.default_rng(seed).normal(size=vectors.shape)
    lengths = [np.linalg.norm(of, axis=1, keepdims=True) for of in (vectors, drawn)]
    rewrite(folder, out, drawn * lengths[0] / lengths[1])
    return out


def rewrite(folder: Path, out: Path, vectors: Array, **fields: object) -> None:
    """Write an artifact with other vectors and fields."""
    trained = Trained.read(folder)
    save_trained(
        out,
        method=trained.method,
        model_id=trained.model_id,
        tensors={"vectors": vectors.astype(np.float32)},
        fields={**trained.fields, **fields},
        provenance={"made_of": trained.sha256},
        card="Vectors for a benchmark.\n",
    )


class Measured:
    """The arms on the test prompts.

    Args:
        arms: The model, the prompts and the score.
    """

    def __init__(self, arms: Arms) -> None:
        self._arms = arms
        self._surprise = Surprise(arms.engine)
        self._margins = arms.margins()
        self._role = arms.cases.role
        self.flagged = self._margins >= 0
        every = np.arange(len(self.flagged))
        self.base = self._labelled(arms.base_replies(), every)

    def both_ways(self, steered: Steered) -> list[Arm]:
        """Return the arms of vectors: under the score, under a perfect one, and each way always.

        Ordinary prompts are steered to a refusal only where the score says so.
        """
        unsafe, every = self._role == "unsafe", np.ones(len(self._role), bool)
        soft = self._under(steered.line(-1), every)
        hard = self._under(steered.line(1), self.flagged | (self._role != "ordinary"))
        return [
            Arm("SCANS", soft.where(self.flagged, hard), self.flagged),
            Arm("perfect score", soft.where(unsafe, hard), unsafe),
            Arm("always softened", soft, ~every),
            Arm("always to refusal", hard, every),
        ]

    def under_score(self, name: str, steered: Steered) -> Arm:
        """Return the arm of vectors under the score."""
        soft = self._under(steered.line(-1), ~self.flagged)
        hard = self._under(steered.line(1), self.flagged)
        return Arm(name, soft.where(self.flagged, hard), self.flagged)

    def rates(self, arm: Arm) -> list[Row]:
        """Return an arm's rates, one row a role."""
        rows = arm_rows("steering", arm, self.base, self._arms.cases)
        if arm.name == "always to refusal":
            return [row for row in rows if row["role"] != "ordinary"]
        return rows

    def score(self) -> dict[str, float | None]:
        """Return what the score is worth on the test prompts."""
        found: dict[str, float | None] = {
            f"flagged_{role}": float(self.flagged[self._role == role].mean()) for role in ROLES
        }
        for role in ROLES[1:]:
            rows = np.isin(self._role, ["unsafe", role])
            found[f"auroc_{role}"] = auroc(self._margins[rows], self._role[rows] == "unsafe")
        return found

    def num_unchanged(self, folder: Path) -> int:
        """Return how many replies at a scale of 0 are the model's own, token for token."""
        rows = np.linspace(0, len(self.flagged) - 1, NUM_UNCHANGED).astype(int)
        found = self._arms.replies(f"steering:{folder}@0", rows)
        own = self._arms.base_replies(rows)
        return sum(a.token_ids == b.token_ids for a, b in zip(found, own, strict=True))

    def _under(self, line: str, is_drawn: Array) -> Outcomes:
        """Return outcomes under a responder; those of prompts that are not drawn are base's."""
        rows = np.flatnonzero(is_drawn)
        if not len(rows):
            return self.base
        found = self._labelled(self._arms.replies(line, rows), rows)
        places = np.maximum(np.cumsum(is_drawn) - 1, 0)
        return self.base.where(is_drawn, found.of(places))

    def _labelled(self, replies: Sequence[KeptReply], rows: Array) -> Outcomes:
        """Return what became of the replies to some rows; perplexity is that of ordinary ones."""
        chats = [self._arms.chats[row] for row in rows]
        perplexity: Array = np.full(len(rows), np.nan)
        ordinary = np.flatnonzero(self._role[rows] == "ordinary").tolist()
        perplexity[ordinary] = self._surprise(
            [chats[n] for n in ordinary], [replies[n] for n in ordinary]
        )
        return replace(LABELLING.label(chats, replies), perplexity=perplexity)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--share", type=float, default=1.0, help="of the test prompts")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    engine = TransformersEngine.load(options.model)
    root = cache_folder() / "benchmarks" / f"scans-{engine.model_id.name}"
    validation = fit_score(engine, root / "score")
    folders = train_vectors(options.model, len(engine.loaded.parts.blocks), root)
    chooser = Chooser(engine, root / "score")
    choices = chooser.choices(folders)
    choice = chosen(choices)
    steered = Steered(folders[choice.layers], choice.strength)
    twin = Steered(random_twin(steered.folder, root / "vectors-random"), choice.strength)
    cases = held_out_cases(DemurData(), share=options.share)
    arms = Arms(options.model, cases, detector=str(root / "score"), max_tokens=options.max_tokens)
    measured = Measured(arms)
    rows: list[Row] = []
    for arm in (
        Arm("base", measured.base),
        *measured.both_ways(steered),
        measured.under_score("random vectors", twin),
    ):
        rows += measured.rates(arm)
    result = {
        "model": engine.model_id.name,
        "machine": describe_machine(),
        "seconds": time.perf_counter() - started,
        "max_tokens": options.max_tokens,
        "refusal_words": Trained.read(steered.folder).value("refusal_words"),
        "validation": validation | {"look_alike_refused_by_base": chooser.base_rate},
        "choices": [asdict(of) | {"is_allowed": of.is_allowed} for of in choices],
        "choice": asdict(choice),
        "score": measured.score(),
        "num_unchanged": measured.num_unchanged(steered.folder),
        "num_compared": NUM_UNCHANGED,
        "rows": rows,
    }
    keep("scans", result, report(result), prints_json=options.json)


if __name__ == "__main__":
    main()

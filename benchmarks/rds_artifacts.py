"""What `benchmarks.rds` compares: the classifier with its draft, and its twins."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.arms import tell
from demur.core.errors import DataError
from demur.core.folders import MANIFEST
from demur.core.readings import Array
from demur.core.tensors import TENSORS
from demur.core.trained import Trained, save_trained
from demur.core.training import Progress, Run
from demur.datasets import written
from demur.trainers.candidate_reranking import CandidateReranking
from demur.workflows.train import train

METHOD = "candidate_reranking"
PAPER, DEEPER = "the paper's", "16 components, three quarters up"
ALONE = "the score alone"
PAPER_ALONE = f"{PAPER}, {ALONE}"
CONTROLS = ("random", "flipped")
"""Arms that no ordinary prompt is answered under."""
NUM_RANDOM = 4


@dataclass(frozen=True)
class Artifacts:
    """Folders of artifacts."""

    setting: str
    """Of the two the one whose scores tell refusals from compliance better, on training prompts."""
    trained: Path
    """By this setting, with a draft."""
    flipped: Path
    """The same with the other sign."""
    random: tuple[Path, ...]
    """With random weights."""
    paper: Path | None
    """By the paper's setting, where it is another one and has a sign."""
    aurocs: Mapping[str, float] = field(default_factory=dict)
    """By setting, what it was chosen by."""

    def line(self, folder: Path | None = None, *, fields: str = "") -> str:
        """Return a responder's line."""
        return f"{METHOD}:{folder or self.trained}{fields}"

    def weighted(self, weight: float, folder: Path | None = None, *, fields: str = "") -> str:
        """Return a responder's line in which a token's log-probability counts."""
        return self.line(folder, fields=f",lm_weight={weight:g}{fields}")

    def arms(self, weight: float) -> dict[str, list[str]]:
        """Return the responders' lines by arm; several take the prompts in turns.

        Args:
            weight: Of a token's log-probability; where it is not 0, the score alone is another arm.
        """
        return {
            "rds": [self.weighted(weight)],
            "rds, draft": [self.weighted(weight, fields=",uses_draft=true")],
            "random": [self.weighted(weight, folder) for folder in self.random],
            "flipped": [self.weighted(weight, self.flipped)],
            **({ALONE: [self.weighted(0)]} if weight else {}),
            **({} if self.paper is None else {PAPER_ALONE: [self.weighted(0, self.paper)]}),
        }


def artifacts(model: str, root: Path, *, num_blocks: int) -> Artifacts:
    """Train what is not there yet, and write the twins.

    Args:
        model: To train on.
        root: Where artifacts are kept.
        num_blocks: Of the model.

    Raises:
        DataError: By neither setting scores tell refusals from compliance.
    """
    deeper = {"layer": 3 * num_blocks // 4, "site": "block_out", "num_components": 16}
    settings: dict[str, dict[str, Any]] = {PAPER: {}, DEEPER: deeper}
    aurocs: dict[str, float] = {}
    for number, (name, fields) in enumerate(settings.items()):
        try:
            trained = _trained(model, root / f"setting-{number}", fields)
        except DataError as error:
            tell(f"{name}: {error}")
            continue
        aurocs[name] = trained.provenance["metrics"]["auroc"]
        tell(f"{name}: AUROC {aurocs[name]:.2f}")
    if not aurocs:
        raise DataError("by neither setting scores tell refusals from compliance")
    chosen = max(aurocs, key=lambda name: aurocs[name])
    trained = _trained(
        model, root / f"drafted-{chosen == DEEPER}", settings[chosen] | {"draft": True}
    )
    folder, weights = Path(trained.folder), load_file(Path(trained.folder) / TENSORS)["weights"]
    rng = np.random.default_rng(0)
    random = []
    for number in range(NUM_RANDOM):
        drawn = rng.normal(size=weights.shape)
        drawn *= np.linalg.norm(weights) / np.linalg.norm(drawn)
        random.append(_twin(trained, root / f"random-{number}", drawn, sign=1))
    flipped = _twin(trained, root / "flipped", weights, sign=-int(trained.value("sign")))
    is_another = chosen != PAPER and PAPER in aurocs
    paper = root / "setting-0" if is_another else None
    return Artifacts(chosen, folder, flipped, tuple(random), paper, aurocs)


def _trained(model: str, folder: Path, fields: Mapping[str, Any]) -> Trained:
    if not (folder / MANIFEST).is_file():
        run = Run(model, report=_say)
        train(CandidateReranking(**fields), written.load("train"), run, folder)
    return Trained.read(folder)


def _twin(trained: Trained, folder: Path, weights: Array, *, sign: int) -> Path:
    save_trained(
        folder,
        method=METHOD,
        model_id=trained.model_id,
        tensors={"weights": weights.astype(np.float32)},
        fields={**trained.fields, "sign": sign},
        provenance={"twin_of": trained.sha256},
        card="To compare with.\n",
    )
    return folder


def _say(progress: Progress) -> None:
    if progress.done == progress.total:
        tell(f"{progress.stage}: {progress.total} done")

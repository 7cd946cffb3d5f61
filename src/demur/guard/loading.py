"""Loads detectors from artifact folders, and refuses those of another model.

A detector that needs no fit, such as a guard model, can be named instead: its threshold is even
odds then, until it is calibrated.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.core import artifacts, by_name
from demur.core.artifacts import Artifact, Calibration
from demur.core.errors import CapabilityError, ConfigError
from demur.core.folders import MANIFEST
from demur.core.linear import LinearDetector
from demur.core.protocols import Detector, Engine, ReadyDetector, Watches
from demur.core.readout import LinearReadout
from demur.core.types import ModelId
from demur.guard import fingerprint
from demur.guard.calibrated import CalibratedDetector

_USE_TRANSFORMERS = (
    "an engine that computes scores inside the model cannot run it; use the engine transformers"
)
PRETRAINED_PATH = Path(__file__).parents[1] / "pretrained"


@dataclass(frozen=True)
class Opened:
    """A detector that fits an engine, with all that its artifact says."""

    name: str
    """What verdicts call it."""
    artifact: Artifact
    detector: Detector

    def calibrated(self, fpr: float | None = None) -> CalibratedDetector:
        """Return the detector with a threshold; see `load_detector`.

        Raises:
            ConfigError: There is no threshold for this rate.
        """
        calibration = self.artifact.calibration
        return CalibratedDetector(
            name=self.name,
            detector=self.detector,
            threshold=(
                calibration.default_threshold if fpr is None else calibration.at(fpr).threshold
            ),
            slope=calibration.slope,
            intercept=calibration.intercept,
            version=self.artifact.sha256[:12],
            heads=self.artifact.heads,
        )


def readouts_of(sources: Sequence[str | Path], model_id: ModelId) -> list[LinearReadout]:
    """Return the read-outs of detectors, for an engine that computes them inside the model.

    Those of the categories come after each detector's own.

    Args:
        sources: Artifact folders, or names of packaged ones; see `load_detector`.
        model_id: Of the model that the engine runs.

    Raises:
        CapabilityError: A detector is not linear: no read-out stands for it.
        ConfigError: There is no such artifact.
        DataError: An artifact is damaged.
        ModelMismatchError: An artifact was made for another model.
    """
    found = []
    for source in sources:
        if _is_by_name(source):
            raise CapabilityError(f"detector {source!r} is not linear: {_USE_TRANSFORMERS}")
        opened = open_artifact(source, model_id)
        if not isinstance(opened.detector, LinearDetector):
            raise CapabilityError(
                f"detector {opened.name!r} ({opened.artifact.method}) is not linear: "
                f"{_USE_TRANSFORMERS}"
            )
        found.append(opened.detector.readout())
        if opened.artifact.heads is not None:
            found += [head.readout for head in opened.artifact.heads.heads.values()]
    return found


def load_detector(
    source: str | Path,
    engine: Engine,
    *,
    watches: Watches = "prompt",
    fpr: float | None = None,
    verify: bool = True,
) -> CalibratedDetector:
    """Load a detector for an engine.

    Args:
        source: An artifact folder, the name of a packaged artifact, or `pretrained` for the
            packaged one that fits the engine's model; or a detector that needs no fit, by name
            with its fields, such as `guard_model:models/shieldgemma-2b` (see `core.by_name`).
        engine: What the detector will read.
        watches: What it is to judge.
        fpr: The false-positive rate to set the threshold for; None is the artifact's default, and
            even odds where nothing was calibrated.
        verify: Compare the fingerprint, which runs a few short prompts.

    Raises:
        ConfigError: There is no such artifact, it judges something else, or it has no threshold for
            this rate.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    return open_detector(source, engine, watches=watches, verify=verify).calibrated(fpr)


def open_detector(
    source: str | Path, engine: Engine, *, watches: Watches = "prompt", verify: bool = True
) -> Opened:
    """Load a detector for an engine, with its artifact; see `load_detector`.

    Raises:
        ConfigError: There is no such artifact, or it judges something else.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    if _is_by_name(source):
        opened = _ready(str(source), engine)
        _require_watching(opened.artifact, watches, name=opened.name)
        return opened
    opened = open_artifact(source, engine.model_id, watches=watches)
    if verify:
        fingerprint.verify(opened.artifact, engine, opened.detector)
    return opened


def open_artifact(source: str | Path, model_id: ModelId, *, watches: Watches = "prompt") -> Opened:
    """Load a fitted detector without an engine: no fingerprint is compared.

    Args:
        source: An artifact folder, or the name of a packaged one; see `load_detector`.
        model_id: Of the model that it is to read.
        watches: What it is to judge.

    Raises:
        ConfigError: There is no such artifact, or it judges something else.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    folder = find_artifact(source, model_id, watches=watches)
    artifact = artifacts.read(folder)
    _require_watching(artifact, watches, name=folder.name)
    artifacts.check_model(artifact, model_id, name=folder.name)
    return Opened(folder.name, artifact, artifacts.restore(artifact))


def _require_watching(artifact: Artifact, watches: Watches, *, name: str) -> None:
    if artifact.watches != watches:
        what = {"prompt": "prompts", "reply": "replies"}
        raise ConfigError(
            f"detector {name!r} watches {what[artifact.watches]}: it cannot judge "
            f"{what[watches]}; fit one with --watches {watches}"
        )


def _is_by_name(source: str | Path) -> bool:
    return isinstance(source, str) and not Path(source).is_dir() and by_name.is_line(source)


def _ready(line: str, engine: Engine) -> Opened:
    """Return a detector that needs no fit, with an artifact that has no thresholds.

    Raises:
        ConfigError: The method has to be fitted, or its fields or the model that it asks are wrong.
    """
    method, fields = by_name.parse(line)
    detector = by_name.make(method, fields)
    if not isinstance(detector, ReadyDetector):
        raise ConfigError(
            f"a detector {method!r} has to be fitted first: run `demur fit --detector {method}` "
            "and name the folder that it writes"
        )
    detector.ready()
    artifact = Artifact(
        method=method,
        hyper_parameters=json.loads(json.dumps(detector.hyper_parameters())),
        model_id=engine.model_id,
        state=detector.state(),
        calibration=Calibration((), slope=1.0, intercept=0.0, calibrated_on="nothing"),
        fingerprint=fingerprint.take(engine, detector),
        fingerprint_tolerance=fingerprint.OWN_PASS_TOLERANCE,
    )
    return Opened(by_name.without_folders(line), artifact, detector)


def find_artifact(source: str | Path, model_id: ModelId, *, watches: Watches = "prompt") -> Path:
    """Return the folder that a source means.

    Args:
        source: See `load_detector`.
        model_id: What a packaged artifact has to fit.
        watches: What a packaged artifact has to judge.

    Raises:
        ConfigError: There is none.
    """
    if source == "pretrained":
        return _fitting(model_id, watches)
    return _folder(source)


def check_source(source: str, *, watches: Watches = "prompt", fpr: float | None = None) -> None:
    """See that a source means a detector, as far as that can be told without the model.

    Args:
        source: See `load_detector`.
        watches: What it has to judge.
        fpr: The false-positive rate that its artifact must have a threshold for.

    Raises:
        ConfigError: There is no such detector, it judges something else, or it has no threshold for
            this rate.
        DataError: The artifact is damaged.
    """
    if source == "pretrained":
        return
    if _is_by_name(source):
        by_name.parse(source)
        return
    folder = _folder(source)
    artifact = artifacts.read(folder)
    _require_watching(artifact, watches, name=folder.name)
    if fpr is not None:
        artifact.calibration.at(fpr)


def _folder(source: str | Path) -> Path:
    packaged = {path.parent.name: path.parent for path in _manifests()}
    if Path(source).is_dir():
        return Path(source).resolve()
    if str(source) in packaged:
        return packaged[str(source)]
    raise ConfigError(
        f"there is no detector {str(source)!r}: expected an artifact folder, 'pretrained', one of "
        f"{sorted(packaged)}, or a detector by name such as prompted:0 or guard_model:FOLDER"
    )


def _manifests() -> list[Path]:
    return sorted(PRETRAINED_PATH.glob(f"*/{MANIFEST}"))


def _fitting(model_id: ModelId, watches: Watches) -> Path:
    folders = [path.parent for path in _manifests()]
    for folder in folders:
        artifact = artifacts.read(folder)
        if artifact.watches == watches and not artifact.model_id.differences(model_id):
            return folder
    raise ConfigError(
        f"no packaged detector that watches a {watches} was fitted on {model_id.name} (packaged: "
        f"{[folder.name for folder in folders]}): fit one with `demur fit` and give its folder"
    )

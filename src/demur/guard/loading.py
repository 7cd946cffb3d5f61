"""Loads detectors from artifact folders, and refuses those of another model."""

from pathlib import Path

from demur.core import artifacts
from demur.core.errors import ConfigError
from demur.core.protocols import Engine
from demur.core.types import ModelId
from demur.guard import fingerprint
from demur.guard.calibrated import CalibratedDetector

PRETRAINED_PATH = Path(__file__).parents[1] / "pretrained"


def load_detector(
    source: str | Path, engine: Engine, *, fpr: float | None = None, verify: bool = True
) -> CalibratedDetector:
    """Load a detector for an engine.

    Args:
        source: An artifact folder, the name of a packaged artifact, or `pretrained` for the
            packaged one that fits the engine's model.
        engine: What the detector will read.
        fpr: The false-positive rate to set the threshold for; None is the artifact's default.
        verify: Compare the fingerprint, which runs a few short prompts.

    Raises:
        ConfigError: There is no such artifact, or no threshold for this rate.
        DataError: The artifact is damaged.
        ModelMismatchError: The artifact was made for another model.
    """
    folder = find_artifact(source, engine.model_id)
    artifact = artifacts.read(folder)
    artifacts.check_model(artifact, engine.model_id, name=folder.name)
    rate = artifact.calibration.default_fpr if fpr is None else fpr
    threshold = artifact.calibration.at(rate).threshold
    detector = artifacts.restore(artifact)
    if verify:
        fingerprint.verify(artifact, engine, detector)
    return CalibratedDetector(
        name=folder.name,
        detector=detector,
        threshold=threshold,
        slope=artifact.calibration.slope,
        intercept=artifact.calibration.intercept,
        version=artifact.sha256[:12],
        heads=artifact.heads,
    )


def find_artifact(source: str | Path, model_id: ModelId) -> Path:
    """Return the folder that a source means.

    Raises:
        ConfigError: There is none.
    """
    packaged = {path.parent.name: path.parent for path in _manifests()}
    if source == "pretrained":
        return _fitting(packaged, model_id)
    if Path(source).is_dir():
        return Path(source).resolve()
    if str(source) in packaged:
        return packaged[str(source)]
    raise ConfigError(
        f"there is no detector {str(source)!r}: expected an artifact folder, 'pretrained' or one "
        f"of {sorted(packaged)}"
    )


def _manifests() -> list[Path]:
    return sorted(PRETRAINED_PATH.glob(f"*/{artifacts.MANIFEST}"))


def _fitting(packaged: dict[str, Path], model_id: ModelId) -> Path:
    for folder in packaged.values():
        if not artifacts.read(folder).model_id.differences(model_id):
            return folder
    raise ConfigError(
        f"no packaged detector was fitted on {model_id.name} (packaged: {sorted(packaged)}): fit "
        "one with `demur fit` and give its folder"
    )

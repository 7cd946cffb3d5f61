"""Detector artifacts: folders that are written whole or not at all, and never unpickled.

demur.json               what it is, for which model, from which data
model.safetensors        the fitted arrays
thresholds.json          each threshold with its rate, interval and calibration set
fingerprint.safetensors  states and scores of a few prompts on the engine that fitted it
README.md                the model card
categories.safetensors   heads for category keys, where they were fitted
moments/                 what later sets can be merged into, where it was kept
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save as to_bytes

from demur.core import registry
from demur.core.errors import ConfigError, DataError
from demur.core.folders import (
    CARD,
    MANIFEST,
    SCHEMA_VERSION,
    as_json,
    read_checked,
    read_manifest,
    read_tensors,
    require_same_model,
    write_whole,
)
from demur.core.heads import CategoryHeads
from demur.core.protocols import Detector, Watches
from demur.core.readings import Array
from demur.core.reads import read_from_dict
from demur.core.tensors import TENSORS
from demur.core.types import ModelId

WEIGHTS, THRESHOLDS, FINGERPRINT = TENSORS, "thresholds.json", "fingerprint.safetensors"
CATEGORIES, MOMENTS = "categories.safetensors", "moments/moments.safetensors"

EVEN_ODDS = 0.0
"""Of scores that are log-odds."""

Guarantee = Literal["conformal", "binomial"]


@dataclass(frozen=True)
class Threshold:
    """A threshold for a stated false-positive rate."""

    fpr: float
    """The rate that was asked for, on traffic like the calibration set."""
    threshold: float
    realised_fpr: float
    """On the calibration set itself."""
    interval: tuple[float, float]
    """95% interval of the realised rate (Clopper-Pearson, over groups)."""
    num_groups: int
    """Independent benign groups that it was calibrated on."""
    guarantee: Guarantee = "conformal"
    """`conformal` keeps the rate on average over draws of the calibration set, `binomial` for all
    but a share `delta` of them."""
    delta: float | None = None
    bound: float | None = None
    """The rate is at most this for all but a share `delta` of draws; at most `fpr`."""
    contamination: float = 0.0
    """The largest share of unsafe prompts that an unlabelled calibration set may hold."""
    holds_in: tuple[str, ...] = ()
    """Parts of the traffic in each of which the rate is kept, such as lengths."""

    @property
    def promise(self) -> str:
        """What may be expected of the threshold, in words."""
        words = f"at most {self.fpr:g} of benign prompts flagged, " + (
            "on average over calibration sets"
            if self.delta is None
            else f"with {100 * (1 - self.delta):.4g}% confidence"
        )
        if self.contamination:
            words += f", if at most {self.contamination:g} of the traffic was unsafe"
        return f"{words}, in each of: {'; '.join(self.holds_in)}" if self.holds_in else words


@dataclass(frozen=True)
class Calibration:
    """How scores become decisions and probabilities."""

    thresholds: tuple[Threshold, ...]
    """None where nothing was calibrated: then scores are log-odds."""
    slope: float
    """probability = sigmoid(slope * score + intercept)."""
    intercept: float
    calibrated_on: str
    """What the benign prompts were, in words."""
    default_fpr: float = 0.01
    reference: tuple[float, ...] = ()
    """Order statistics of one score a group, lowest first: what live scores are compared with."""
    num_reference: int = 0
    """Groups that the order statistics were taken of, at evenly spaced ranks."""

    @property
    def default_threshold(self) -> float:
        """The threshold for `default_fpr`; where nothing was calibrated, even odds."""
        return self.at(self.default_fpr).threshold if self.thresholds else EVEN_ODDS

    def at(self, fpr: float) -> Threshold:
        """Return the threshold of a calibrated rate.

        Raises:
            ConfigError: The rate was not calibrated.
        """
        for threshold in self.thresholds:
            if abs(threshold.fpr - fpr) < 1e-12:
                return threshold
        rates = [threshold.fpr for threshold in self.thresholds]
        if not rates:
            raise ConfigError(
                f"the detector has no threshold for a false-positive rate of {fpr}, since it was "
                "never calibrated: run `demur calibrate` with benign prompts and use what it writes"
            )
        raise ConfigError(
            f"the detector has no threshold for a false-positive rate of {fpr}: calibrated rates "
            f"are {rates}"
        )


@dataclass(frozen=True)
class Artifact:
    """A fitted, calibrated detector as it lies on disk."""

    method: str
    hyper_parameters: Mapping[str, Any]
    model_id: ModelId
    state: Mapping[str, Array]
    calibration: Calibration
    fingerprint: Mapping[str, Array]
    """`token_ids` [token], `lengths` [prompt], `scores` [prompt], and `states.I` of read I."""
    fingerprint_tolerance: float
    """Largest |score - stored score| that still counts as the same model."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Library versions, hashes of the training sets, the command."""
    card: str = ""
    moments: Mapping[str, Array] = field(default_factory=dict)
    """What the detector keeps beside its fit, so that sets can be added and taken away."""

    heads: CategoryHeads | None = None

    @property
    def watches(self) -> Watches:
        """What the detector judges."""
        watches: Watches = self.hyper_parameters.get("watches", "prompt")
        return watches

    @property
    def sha256(self) -> str:
        """Hash of the fitted arrays and hyper-parameters: the detector's version."""
        digest = hashlib.sha256(json.dumps(self.hyper_parameters, sort_keys=True).encode())
        for name in sorted(self.state):
            digest.update(name.encode() + self.state[name].tobytes())
        return digest.hexdigest()


def save(artifact: Artifact, folder: Path) -> None:
    """Write an artifact's folder, replacing an earlier artifact there.

    Raises:
        ConfigError: The folder holds something else.
    """
    tensors = {
        name: to_bytes({key: array.copy(order="C") for key, array in arrays.items()})
        for name, arrays in (
            (WEIGHTS, artifact.state),
            (FINGERPRINT, artifact.fingerprint),
            (CATEGORIES, {} if artifact.heads is None else artifact.heads.arrays()),
            (MOMENTS, artifact.moments),
        )
        if arrays or name in (WEIGHTS, FINGERPRINT)
    }
    thresholds = as_json(asdict(artifact.calibration))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "detector",
        "method": artifact.method,
        "version": artifact.sha256,
        "hyper_parameters": artifact.hyper_parameters,
        "model_id": artifact.model_id.as_dict(),
        "fingerprint_tolerance": artifact.fingerprint_tolerance,
        "sha256": {
            name: hashlib.sha256(content).hexdigest()
            for name, content in {**tensors, THRESHOLDS: thresholds}.items()
        },
        "provenance": artifact.provenance,
        "categories": None if artifact.heads is None else artifact.heads.as_dict(),
    }
    write_whole(
        folder,
        {
            **tensors,
            THRESHOLDS: thresholds,
            CARD: artifact.card.encode(),
            MANIFEST: as_json(manifest),
        },
    )


def read(folder: Path) -> Artifact:
    """Read an artifact's folder.

    Raises:
        ConfigError: There is no artifact in the folder.
        DataError: A file is missing, truncated or altered.
    """
    manifest = read_manifest(folder, kind="detector")
    try:
        artifact = Artifact(
            method=manifest["method"],
            hyper_parameters=manifest["hyper_parameters"],
            model_id=ModelId(**manifest["model_id"]),
            state=read_tensors(folder / WEIGHTS, manifest["sha256"][WEIGHTS]),
            calibration=_calibration(folder / THRESHOLDS, manifest["sha256"][THRESHOLDS]),
            fingerprint=read_tensors(folder / FINGERPRINT, manifest["sha256"][FINGERPRINT]),
            fingerprint_tolerance=float(manifest["fingerprint_tolerance"]),
            provenance=manifest["provenance"],
            card=(folder / CARD).read_text(encoding="utf-8"),
            moments=_read_optional(folder, MOMENTS, manifest),
            heads=_heads(folder, manifest),
        )
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        message = f"{folder} is incomplete or damaged ({error}): fit the detector again"
        raise DataError(message) from error
    if artifact.sha256 != manifest.get("version"):
        raise DataError(
            f"the hyper-parameters in {folder / MANIFEST} are not those that were written: fit the "
            "detector again or copy it anew"
        )
    return artifact


def _read_optional(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Array]:
    hashes = manifest["sha256"]
    return read_tensors(folder / name, hashes[name]) if name in hashes else {}


def _heads(folder: Path, manifest: Mapping[str, Any]) -> CategoryHeads | None:
    if manifest.get("categories") is None:
        return None
    reads = tuple(read_from_dict(read) for read in manifest["hyper_parameters"]["reads"])
    arrays = _read_optional(folder, CATEGORIES, manifest)
    return CategoryHeads.from_arrays(manifest["categories"], arrays, reads)


def _calibration(path: Path, expected: str) -> Calibration:
    fields = json.loads(read_checked(path, expected))
    thresholds = tuple(Threshold(**_with_tuples(t)) for t in fields.pop("thresholds"))
    return Calibration(thresholds=thresholds, **_with_tuples(fields))


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as they were before JSON made lists of tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


def restore(artifact: Artifact) -> Detector:
    """Return the fitted detector that an artifact holds.

    Raises:
        ConfigError: There is no such method.
        DataError: The hyper-parameters or arrays are not the method's.
    """
    method: type[Detector] = registry.load("detectors", artifact.method)
    detector = method.from_hyper_parameters(artifact.hyper_parameters).load_state(artifact.state)
    return detector.load_moments(artifact.moments)


def check_model(artifact: Artifact, model_id: ModelId, *, name: str) -> None:
    """Refuse a model that the artifact was not made for.

    Weights, dtype and quantisation are not compared here: the fingerprint judges them.

    Raises:
        ModelMismatchError: Architecture, tokenizer or chat template differ.
    """
    require_same_model(artifact.model_id, model_id, what=f"detector {name!r}")

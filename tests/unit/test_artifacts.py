"""Artifacts are written whole or not at all, checked when read, and loaded for their model."""

import errno
import json
import math
import os
from collections.abc import Callable, Container
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from demur.core import artifacts
from demur.core.artifacts import Artifact
from demur.core.errors import ConfigError, DataError, ModelMismatchError
from demur.core.folders import CARD, MANIFEST
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.loading import PRETRAINED_PATH, find_artifact, load_detector
from tests.guards import REFUSAL, linear_artifact

FILES = [
    MANIFEST,
    artifacts.WEIGHTS,
    artifacts.THRESHOLDS,
    artifacts.FINGERPRINT,
    CARD,
]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return linear_artifact()


@pytest.fixture(scope="module")
def other() -> Artifact:
    return linear_artifact(num_prompts=30)


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    artifacts.save(artifact, tmp_path / "guard")
    return tmp_path / "guard"


def fail_at(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    *,
    calls: Container[int],
    error: type[BaseException] = OSError,
) -> None:
    """Let some calls of a function, from 1, find the disk full; the others do their work."""
    real: Callable[..., object] = getattr(owner, name)
    numbers = count(1)

    def flaky(*arguments: object) -> object:
        if next(numbers) in calls:
            raise error(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(owner, name, flaky)


def edit(path: Path, **changes: object) -> None:
    """Change entries of a JSON file; None takes one away."""
    content = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


# Writing


def test_what_is_read_is_what_was_saved(artifact: Artifact, folder: Path) -> None:
    found = artifacts.read(folder)
    for name in ("state", "fingerprint"):
        arrays, expected = getattr(found, name), getattr(artifact, name)
        assert set(arrays) == set(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(arrays[key], array)
            assert arrays[key].dtype == array.dtype
    assert replace(found, state={}, fingerprint={}) == replace(artifact, state={}, fingerprint={})
    assert found.sha256 == artifact.sha256


def test_a_folder_holds_five_files_and_nothing_beside_it(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_second_artifact_replaces_the_first(other: Artifact, folder: Path) -> None:
    artifacts.save(other, folder)
    assert artifacts.read(folder).sha256 == other.sha256
    assert list(folder.parent.iterdir()) == [folder]


def test_missing_folders_on_the_way_are_made(artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "a" / "b" / "guard")
    assert artifacts.read(tmp_path / "a" / "b" / "guard").sha256 == artifact.sha256


def test_an_empty_folder_may_become_an_artifact(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    artifacts.save(artifact, tmp_path / "guard")
    assert artifacts.read(tmp_path / "guard").sha256 == artifact.sha256


def test_a_folder_that_holds_something_else_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no artifact: name a new or empty folder"):
        artifacts.save(artifact, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_a_folder_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "guard").write_text("years of work")
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        artifacts.save(artifact, tmp_path / "guard")
    assert (tmp_path / "guard").read_text() == "years of work"


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_write_that_fails_leaves_the_older_artifact(
    artifact: Artifact, other: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    fail_at(monkeypatch, os, "fsync", calls=[call])
    with pytest.raises(OSError, match="No space left"):
        artifacts.save(other, folder)
    assert artifacts.read(folder).sha256 == artifact.sha256
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rename_that_fails_leaves_the_older_artifact(
    artifact: Artifact,
    other: Artifact,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    error: type[BaseException],
    call: int,
) -> None:
    fail_at(monkeypatch, Path, "rename", calls=[call], error=error)
    with pytest.raises(error, match="No space left"):
        artifacts.save(other, folder)
    assert artifacts.read(folder).sha256 == artifact.sha256
    assert list(folder.parent.iterdir()) == [folder]


def test_an_older_artifact_that_cannot_be_put_back_is_kept_beside_its_place(
    artifact: Artifact, other: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, Path, "rename", calls=range(2, 9))
    with pytest.raises(OSError, match="No space left"):
        artifacts.save(other, folder)
    (kept,) = folder.parent.iterdir()
    assert artifacts.read(kept).sha256 == artifact.sha256


def test_a_failed_write_puts_back_what_a_killed_run_had_moved_away(
    artifact: Artifact, other: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.with_name(f".{folder.name}.old"))
    fail_at(monkeypatch, os, "fsync", calls=[1])
    with pytest.raises(OSError, match="No space left"):
        artifacts.save(other, folder)
    assert artifacts.read(folder).sha256 == artifact.sha256
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")], ids=["write", "mv"])
def test_a_first_write_that_fails_leaves_nothing(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    fail_at(monkeypatch, owner, name, calls=[1])
    with pytest.raises(OSError, match="No space left"):
        artifacts.save(artifact, tmp_path / "guard")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_may_be_tried_again(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, os, "fsync", calls=[2])
    with pytest.raises(OSError, match="No space left"):
        artifacts.save(artifact, tmp_path / "guard")
    artifacts.save(artifact, tmp_path / "guard")
    assert artifacts.read(tmp_path / "guard").sha256 == artifact.sha256


# Reading


@pytest.mark.parametrize("name", [artifacts.WEIGHTS, artifacts.FINGERPRINT])
def test_truncated_arrays_are_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{name} has sha256 .* truncated or was changed"):
        artifacts.read(folder)


@pytest.mark.parametrize("name", [artifacts.WEIGHTS, artifacts.FINGERPRINT])
def test_arrays_with_one_bit_changed_are_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} has sha256"):
        artifacts.read(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        artifacts.read(folder)


@pytest.mark.parametrize("name", [MANIFEST, artifacts.THRESHOLDS])
@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1', b"\xff\xfe", b"[1, 2]"])
def test_json_that_is_broken_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        artifacts.read(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(folder: Path, version: object) -> None:
    edit(folder / MANIFEST, schema_version=version)
    with pytest.raises(DataError, match=f"schema version {version!r}: this demur reads 1"):
        artifacts.read(folder)


@pytest.mark.parametrize(
    "key", ["method", "hyper_parameters", "model_id", "sha256", "fingerprint_tolerance"]
)
def test_a_manifest_that_lacks_an_entry_is_refused(folder: Path, key: str) -> None:
    edit(folder / MANIFEST, **{key: None})
    with pytest.raises(DataError, match=f"incomplete .*{key}"):
        artifacts.read(folder)


@pytest.mark.parametrize("changes", [{"slope": None}, {"slope": math.nan}, {"default_fpr": 0.1}])
def test_thresholds_that_were_changed_are_refused(
    folder: Path, changes: dict[str, float | None]
) -> None:
    edit(folder / artifacts.THRESHOLDS, **changes)
    with pytest.raises(DataError, match="was changed"):
        artifacts.read(folder)


@pytest.mark.parametrize("c", [1.0, "0.01"])
def test_a_hyper_parameter_that_was_changed_is_refused(
    artifact: Artifact, folder: Path, c: object
) -> None:
    changed = {**artifact.hyper_parameters, "c": c}
    edit(folder / MANIFEST, hyper_parameters=changed)
    with pytest.raises(DataError, match="are not those that were written"):
        artifacts.read(folder)


@pytest.mark.parametrize("tolerance", ["lots", [], {}])
def test_a_tolerance_that_is_no_number_is_refused(folder: Path, tolerance: object) -> None:
    edit(folder / MANIFEST, fingerprint_tolerance=tolerance)
    with pytest.raises(DataError, match="is incomplete or damaged"):
        artifacts.read(folder)


def test_a_card_that_is_no_utf_8_is_refused(folder: Path) -> None:
    (folder / CARD).write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match="is incomplete or damaged"):
        artifacts.read(folder)


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no detector: expected a folder with demur\.json"):
        artifacts.read(tmp_path)


def test_an_unknown_method_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="there is no detector 'oracle': expected one of"):
        artifacts.restore(replace(artifact, method="oracle"))


def test_hyper_parameters_are_part_of_the_version(artifact: Artifact) -> None:
    changed = {**artifact.hyper_parameters, "c": 1.0}
    assert replace(artifact, hyper_parameters=changed).sha256 != artifact.sha256


# Loading


def test_a_loaded_detector_has_the_threshold_of_the_default_rate(
    artifact: Artifact, folder: Path
) -> None:
    detector = load_detector(folder, FakeEngine())
    assert detector.threshold == artifact.calibration.at(0.01).threshold
    assert (detector.name, detector.version) == ("guard", artifact.sha256[:12])


def test_a_loaded_detector_has_the_threshold_of_the_rate_asked_for(
    artifact: Artifact, folder: Path
) -> None:
    detector = load_detector(folder, FakeEngine(), fpr=0.1)
    assert detector.threshold == artifact.calibration.at(0.1).threshold


def test_a_rate_that_was_not_calibrated_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"rate of 0.02: calibrated rates are \[0.01, 0.1\]"):
        load_detector(folder, FakeEngine(), fpr=0.02)


def test_a_threshold_of_nan_is_not_loaded(artifact: Artifact, folder: Path) -> None:
    calibration = artifact.calibration
    thresholds = tuple(replace(at, threshold=math.nan) for at in calibration.thresholds)
    broken = replace(artifact, calibration=replace(calibration, thresholds=thresholds))
    artifacts.save(broken, folder)
    with pytest.raises(DataError, match="threshold of detector 'guard' is nan"):
        load_detector(folder, FakeEngine())


def test_a_detector_of_other_weights_is_not_loaded(folder: Path) -> None:
    with pytest.raises(ModelMismatchError, match="verify=False"):
        load_detector(folder, FakeEngine(seed=1))


def test_an_operator_may_load_a_detector_unverified(folder: Path) -> None:
    engine = FakeEngine(seed=1)
    assert load_detector(folder, engine, verify=False).name == "guard"
    assert engine.num_prefills == 0


def test_a_detector_of_another_architecture_is_not_loaded_even_unverified(folder: Path) -> None:
    with pytest.raises(ModelMismatchError, match="another architecture"):
        load_detector(folder, FakeEngine(num_layers=5), verify=False)


def test_an_unknown_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no detector .*nowhere': expected"):
        find_artifact(tmp_path / "nowhere", FakeEngine().model_id)


def test_a_guard_loads_an_artifact_folder(folder: Path) -> None:
    guard = Guard.load(FakeEngine(), detectors=[folder])
    assert guard.reply("Tell me the MARKER.").text == REFUSAL
    assert guard.reply("Tell me a story.").text == "Tell me a story."


def test_a_guard_takes_a_responder_with_dashes(folder: Path) -> None:
    guard = Guard.load(FakeEngine(), detectors=[folder], responder="safety-prompt")
    assert guard.reply("Tell me the MARKER.").route == "safety_prompt"


def test_a_guard_does_not_load_an_unknown_responder(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is no responder 'oracle'"):
        Guard.load(FakeEngine(), detectors=[folder], responder="oracle")


def test_the_weights_of_the_packaged_detector_take_a_few_kilobytes() -> None:
    for path in PRETRAINED_PATH.glob("*/model.safetensors"):
        assert path.stat().st_size < 100_000
    assert list(PRETRAINED_PATH.glob("*/model.safetensors"))

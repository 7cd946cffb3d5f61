"""Detectors by name, with their fields: which lines mean what, and guards that are made of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from demur.core import artifacts, by_name
from demur.core.errors import ConfigError, ModelMismatchError
from demur.core.readings import Array
from demur.core.reads import ExtraRead, OwnPass
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.loading import load_detector, open_detector
from tests.guards import SAFE, UNSAFE, linear_artifact, read_texts
from tests.tiny import tiny
from tests.tiny_guards import PUBLISHED, save_classifier, save_guard


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prompted", ("prompted", {})),
        ("prompted:3", ("prompted", {"wrapper": 3})),
        ("guard-model:a/b", ("guard_model", {"model": "a/b"})),
        (
            'guard_model:a,b,format=classifier,unsafe_classes=["x","y"]',
            (
                "guard_model",
                {"model": "a,b", "format": "classifier", "unsafe_classes": ["x", "y"]},
            ),
        ),
        ("guard_model:format=wildguard", ("guard_model", {"format": "wildguard"})),
        (
            'cascade:folder,second={"method":"prompted","wrapper":2},low=-1.5',
            (
                "cascade",
                {"first": "folder", "second": {"method": "prompted", "wrapper": 2}, "low": -1.5},
            ),
        ),
    ],
)
def test_a_line_names_a_method_and_its_fields(
    line: str, expected: tuple[str, dict[str, object]]
) -> None:
    assert by_name.is_line(line)
    name, fields = by_name.parse(line)
    assert (name.replace("-", "_"), fields) == expected


def test_a_number_has_the_type_of_its_field_however_it_is_written() -> None:
    found = [
        by_name.parse(f"steering:folder,scale={text}", kind="responders")[1]["scale"]
        for text in ("1", "1.0")
    ]
    assert [repr(value) for value in found] == ["1.0", "1.0"]


@pytest.mark.parametrize("line", ["my-detector", "models/prompted:3", "pretrained", ""])
def test_other_texts_are_no_lines(line: str) -> None:
    assert not by_name.is_line(line)


@pytest.mark.parametrize("line", ["prompted:c=1", "nearest_mean:3", "prompted:reads=1"])
def test_an_unknown_field_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="expected some of"):
        by_name.parse(line)


def test_a_guard_takes_a_detector_by_name_at_even_odds() -> None:
    engine = FakeEngine()
    guard = Guard.load(engine, detectors=("prompted:3",))
    (safe,), (unsafe,) = guard.check(SAFE), guard.check(UNSAFE)
    assert (safe.flagged, unsafe.flagged) == (False, True)
    assert (safe.detector, safe.threshold) == ("prompted:3", 0.0)
    read = guard.detectors[0].detector.reads[0]
    assert isinstance(read, OwnPass)
    values = read_texts(engine, (read,), [UNSAFE]).log_probabilities(read)[0]
    assert unsafe.score == pytest.approx(float(values[0] - values[1]))
    assert unsafe.score is not None
    assert unsafe.probability == pytest.approx(1 / (1 + np.exp(-unsafe.score)))


def test_two_detectors_of_one_method_have_names_of_their_own_without_folders(
    tmp_path: Path,
) -> None:
    published = PUBLISHED[0]
    folder = save_guard(tmp_path / "Llama-Guard-3-1B", "llama", published.template)
    classifier = save_classifier(tmp_path / "classifier")
    lines = (f"guard_model:{folder}", f'guard_model:{classifier},unsafe_classes=["cruel"]')
    guard = Guard.load(TransformersEngine(tiny("qwen2")), detectors=lines)
    names = [verdict.detector for verdict in guard.check(SAFE)]
    assert names == [
        "guard_model:Llama-Guard-3-1B",
        'guard_model:classifier,unsafe_classes=["cruel"]',
    ]


def test_what_has_to_be_fitted_cannot_be_taken_by_name() -> None:
    with pytest.raises(ConfigError, match="a detector 'linear' has to be fitted first"):
        load_detector("linear", FakeEngine())
    with pytest.raises(ConfigError, match="'prompted:3' watches prompts"):
        load_detector("prompted:3", FakeEngine(), watches="reply")


def test_without_calibration_there_is_no_rate_to_ask_for() -> None:
    with pytest.raises(ConfigError, match="never calibrated: run `demur calibrate`"):
        load_detector("prompted:3", FakeEngine(), fpr=0.01)


def test_a_guard_model_that_is_not_there_is_found_out_before_any_request() -> None:
    engine = TransformersEngine(tiny("qwen2"))
    with pytest.raises(ConfigError, match="there is no model '/nowhere/wildguard'"):
        Guard.load(engine, detectors=("guard_model:/nowhere/wildguard",))


def test_a_cascade_by_name_is_a_saved_detector_and_a_question(tmp_path: Path) -> None:
    artifacts.save(linear_artifact(), tmp_path / "marker")
    engine = FakeEngine()
    line = f"cascade:{tmp_path / 'marker'},second=prompted:1,low=-1000,high=1000,combine=second"
    guard = Guard.load(engine, detectors=(line,))
    before = engine.num_own_passes
    (verdict,) = guard.check(UNSAFE)
    assert engine.num_own_passes == before + 1
    alone = Guard.load(engine, detectors=("prompted:1",)).check(UNSAFE)[0]
    assert verdict.score == alone.score
    assert guard.detectors[0].detector.measured() == {"escalation_rate": 1.0}


def test_a_guard_model_that_answers_otherwise_is_refused_also_outside_of_the_band(
    tmp_path: Path,
) -> None:
    artifacts.save(linear_artifact(), tmp_path / "marker")
    line = f"cascade:{tmp_path / 'marker'},second=prompted:1,low=1000,high=1000"
    artifacts.save(open_detector(line, FakeEngine()).artifact, tmp_path / "cascade")
    assert open_detector(tmp_path / "cascade", FakeEngine()).name == "cascade"

    class Other(FakeEngine):
        """Answers questions the other way round."""

        def values_of(self, read: ExtraRead, chats: Sequence[Chat]) -> Array:
            turned: Array = super().values_of(read, chats)[:, ::-1]
            return turned

    with pytest.raises(ModelMismatchError, match="asks model 'self', which answers differently"):
        open_detector(tmp_path / "cascade", Other())

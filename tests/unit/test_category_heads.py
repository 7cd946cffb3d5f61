"""A key has a head where enough positives were seen; any other key is unsupported, never scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from demur.core import artifacts
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Texts
from demur.core.types import Chat
from demur.guard.calibrated import CalibratedDetector
from demur.workflows.categories import fit_heads, require_pooled
from tests.guards import linear_artifact

LAST = CaptureSpec((0, 1))
CODES = {"V": 130, "S": 120, "SH": 40, "": 30}
"""Of OpenAI's set, with the number of prompts of each; the empty one tells nothing."""


def examples() -> tuple[list[Example], Readings, Array]:
    """Return prompts of which each category has a direction of its own, and their codes."""
    codes = np.array(
        [code for code, number in CODES.items() for _ in range(number)] + ["safe"] * 300
    )
    generator = np.random.default_rng(0)
    codes = codes[generator.permutation(len(codes))]
    states = generator.standard_normal((len(codes), 2, 6)).astype(np.float32)
    for number, code in enumerate(CODES):
        states[codes == code, :, number] += 3
    rows = []
    for number, code in enumerate(codes.tolist()):
        label: Label = "safe" if code == "safe" else "unsafe"
        rows.append(
            Example(
                str(number),
                Chat.from_text(f"made up {number}"),
                label=label,
                source="openai_moderation",
                category=None if code == "safe" else code,
            )
        )
    return rows, Readings({LAST: states}), codes


def test_a_key_has_a_head_from_a_hundred_positives_on() -> None:
    rows, readings, _ = examples()
    heads = fit_heads(rows, readings, rows, readings, reads=(LAST,))
    assert {"violence", "sexual"} <= set(heads.heads)
    assert "self-harm" in heads.unsupported
    assert heads.num_positives["self-harm"] == 40
    assert set(heads.heads).isdisjoint(heads.unsupported)
    assert len(heads.heads) + len(heads.unsupported) == 27


def test_a_head_tells_its_key_from_safe_prompts_and_from_other_keys() -> None:
    rows, readings, codes = examples()
    heads = fit_heads(rows, readings, rows, readings, reads=(LAST,))
    found = heads.probabilities(readings)["violence"]
    assert roc_auc_score(codes == "V", found) > 0.95
    assert found[codes == "V"].mean() > 0.8
    assert found[codes == "S"].mean() < 0.3


def test_heads_lie_in_the_artifact_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    rows, readings, _ = examples()
    reads = linear_artifact().hyper_parameters["reads"]
    heads = fit_heads(rows, readings, rows, readings, reads=(LAST,))
    artifact = replace(
        linear_artifact(),
        hyper_parameters={"reads": [{**reads[0], "layers": [0, 1]}], "c": 1.0},
        heads=heads,
    )
    artifacts.save(artifact, tmp_path / "saved")
    restored = artifacts.read(tmp_path / "saved").heads
    assert restored is not None
    assert restored.num_positives == heads.num_positives
    before, after = heads.probabilities(readings), restored.probabilities(readings)
    assert before.keys() == after.keys()
    for key, values in before.items():
        np.testing.assert_array_equal(values, after[key])


def test_damaged_heads_are_refused() -> None:
    rows, readings, _ = examples()
    heads = fit_heads(rows, readings, rows, readings, reads=(LAST,))
    arrays = heads.arrays()
    del arrays["violence:numbers"]
    with pytest.raises(DataError, match="violence:numbers"):
        type(heads).from_arrays(heads.as_dict(), arrays, (LAST,))


def test_a_verdict_names_unsupported_keys_without_a_score() -> None:
    rows, readings, _ = examples()
    heads = fit_heads(rows, readings, rows, readings, reads=(LAST,))
    with_heads = CalibratedDetector("d", _Constant(), 0.0, 1.0, 0.0, "v", heads=heads)  # type: ignore[arg-type]
    (verdict,) = with_heads.verdicts(readings.take([0]))
    assert verdict.categories is not None
    assert verdict.categories["self-harm"] is None
    assert verdict.categories["violence"] == heads.probabilities(readings)["violence"][0]
    without = CalibratedDetector("d", _Constant(), 0.0, 1.0, 0.0, "v")  # type: ignore[arg-type]
    assert without.verdicts(readings.take([0]))[0].categories is None


def test_a_detector_of_texts_has_no_heads() -> None:
    with pytest.raises(ConfigError, match="--categories"):
        require_pooled([Texts()])
    require_pooled([LAST])


class _Constant:
    """Scores every prompt alike."""

    def decision_function(self, readings: Readings) -> Array:
        return np.zeros(len(readings))

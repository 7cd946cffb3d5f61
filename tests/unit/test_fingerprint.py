"""A detector is tied to its model: by hashes, and by what it says of a few fixed texts."""

from dataclasses import replace

import numpy as np
import pytest

from demur.core import artifacts
from demur.core.artifacts import Artifact
from demur.core.errors import DemurError, ModelMismatchError
from demur.core.types import Chat, Prompt
from demur.engines.fake import FakeEngine
from demur.guard import fingerprint
from tests.guards import linear_artifact


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return linear_artifact()


@pytest.mark.parametrize("part", ["architecture", "tokenizer", "chat_template"])
def test_another_model_is_refused_with_both_names(artifact: Artifact, part: str) -> None:
    asked = replace(artifact.model_id, name="qwen", **{part: "something else"})
    with pytest.raises(ModelMismatchError) as refused:
        artifacts.check_model(artifact, asked, name="my guard")
    message = str(refused.value)
    assert f"detector 'my guard' was made for fake, got qwen (another {part})" in message


@pytest.mark.parametrize("part", ["name", "dtype"])
def test_another_name_or_number_format_is_left_to_the_fingerprint(
    artifact: Artifact, part: str
) -> None:
    asked = replace(artifact.model_id, **{part: "something else"})
    artifacts.check_model(artifact, asked, name="my guard")


def test_a_fingerprint_verifies_on_the_engine_that_it_was_taken_on(artifact: Artifact) -> None:
    fingerprint.verify(artifact, FakeEngine(), artifacts.restore(artifact))


def test_a_fingerprint_tells_other_weights(artifact: Artifact) -> None:
    engine = FakeEngine(seed=1)
    artifacts.check_model(artifact, engine.model_id, name="my guard")
    with pytest.raises(ModelMismatchError, match="scores the fingerprint texts differently"):
        fingerprint.verify(artifact, engine, artifacts.restore(artifact))


def test_a_fingerprint_accepts_what_its_tolerance_allows(artifact: Artifact) -> None:
    loose = replace(artifact, fingerprint_tolerance=1e9)
    fingerprint.verify(loose, FakeEngine(seed=1), artifacts.restore(loose))


def test_a_fingerprint_of_nan_is_not_verified(artifact: Artifact) -> None:
    scores = np.full(len(artifact.fingerprint["scores"]), np.nan)
    broken = replace(artifact, fingerprint={**artifact.fingerprint, "scores": scores})
    with pytest.raises(ModelMismatchError, match="by up to nan"):
        fingerprint.verify(broken, FakeEngine(), artifacts.restore(broken))


class OtherTokens(FakeEngine):
    """The fake engine with another number for its first token."""

    def render(self, chat: Chat) -> Prompt:
        prompt = super().render(chat)
        return replace(prompt, token_ids=(99, *prompt.token_ids[1:]))


def test_a_fingerprint_tells_other_tokens(artifact: Artifact) -> None:
    with pytest.raises(ModelMismatchError, match="knows other tokens"):
        fingerprint.verify(artifact, OtherTokens(), artifacts.restore(artifact))


def test_an_engine_that_cannot_read_the_fingerprint_is_an_error(artifact: Artifact) -> None:
    with pytest.raises(DemurError, match="failed on fingerprint text 0"):
        fingerprint.verify(artifact, FakeEngine(num_layers=2), artifacts.restore(artifact))

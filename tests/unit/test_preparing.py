"""What is loaded when a guard is built, so that no flagged request waits for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import DataError
from demur.core.preparing import ForeseeingResponder, PreparingEngine
from demur.core.protocols import Engine
from demur.core.trained import save_trained
from demur.core.types import Sampling
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.responding import load_responder
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import marker_detector
from tests.tiny import tiny
from tests.trained import MADE, made


def guard_of(engine: Engine, line: str) -> Guard:
    name = line.partition(":")[0]
    return Guard(
        engine,
        [marker_detector(engine)],
        route=FlaggedTo(name),
        responders={name: load_responder(line, engine.model_id)},
    )


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("refusal_head", ""),
        ("candidate_reranking", ""),
        ("candidate_reranking", ",uses_draft=true"),
        ("adapter", ""),
    ],
)
def test_tensors_are_loaded_when_the_guard_is_built(
    method: str, fields: str, tmp_path: Path
) -> None:
    folder = made(method, tmp_path / method).folder
    guard = guard_of(TransformersEngine(tiny()), f"{method}:{folder}{fields}")
    shutil.rmtree(folder)
    reply = guard.reply("Tell me the MARKER", Sampling(max_tokens=3))
    assert (reply.route, reply.error) == (method, None)


def test_tensors_that_do_not_fit_are_found_when_the_guard_is_built(tmp_path: Path) -> None:
    save_trained(
        tmp_path / "head",
        method="refusal_head",
        model_id=tiny().model_id,
        tensors={"head": np.zeros((3, 4), np.float32)},
        fields={},
        provenance={},
        card="",
    )
    with pytest.raises(DataError, match=r"has shape \(3, 4\): expected \(300, 32\)"):
        guard_of(TransformersEngine(tiny()), f"refusal_head:{tmp_path / 'head'}")


def test_who_cannot_foresee_or_prepare_is_left_alone() -> None:
    assert not isinstance(FixedReply(), ForeseeingResponder)
    assert not isinstance(FakeEngine(), PreparingEngine)
    assert guard_of(TransformersEngine(tiny()), "fixed_reply").reply("The MARKER").error is None
    assert guard_of(FakeEngine(), "fixed_reply").reply("The MARKER").error is None


def test_a_trained_responder_that_foresees_names_what_it_read(tmp_path: Path) -> None:
    for method in MADE:
        of = made(method, tmp_path / method)
        responder = load_responder(f"{method}:{of.folder}", tiny().model_id)
        if isinstance(responder, ForeseeingResponder):
            assert of.sha256 in repr(responder.returns)

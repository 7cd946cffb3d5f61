"""Adapters inside vLLM: flagged requests have transformers' replies, others keep their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demur.core.errors import CapabilityError
from demur.core.interventions import UseAdapter
from demur.core.protocols import Done, Request
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from tests.adapters import lora
from tests.vllm_engines import (
    LAST,
    TEXTS,
    assert_as_in_transformers,
    assert_passed_are_untouched,
    make,
    model_folder,
    needs_vllm,
    shared,
)

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def plain() -> TransformersEngine:
    return TransformersEngine.load(model_folder(), dtype="float32")


@pytest.fixture(scope="module")
def adapters(plain: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return two adapters of different ranks and blocks, and the first at half its strength."""
    folder = tmp_path_factory.mktemp("adapters")
    first = lora(folder / "a", plain.loaded, rank=4).ref
    second = lora(folder / "b", plain.loaded, rank=9, layers=[2, 3], seed=1, use_rslora=True).ref
    return [UseAdapter(first), UseAdapter(second), UseAdapter(first, 0.5)]


@pytest.fixture(scope="module")
def engine(adapters: Sequence[UseAdapter]) -> Any:
    return make(max_batch=8, interventions=[*adapters, replace(adapters[0], scale=0.0)])


def test_a_mixed_batch_has_the_replies_of_transformers(
    engine: Any, plain: TransformersEngine, adapters: Sequence[UseAdapter]
) -> None:
    mixed = [None, adapters[0], adapters[1], None, adapters[2], replace(adapters[0], scale=0.0)]
    unchanged = [True, False, False, True, False, True]
    assert_as_in_transformers(engine, plain, mixed, unchanged=unchanged)


def test_requests_that_pass_have_the_tokens_of_an_engine_without_adapters(
    engine: Any, adapters: Sequence[UseAdapter]
) -> None:
    mixed = [None, None, adapters[0], None, None, adapters[1]]
    assert_passed_are_untouched(engine, mixed)


def test_an_adapter_that_was_not_named_is_an_error_of_its_request(
    engine: Any, adapters: Sequence[UseAdapter]
) -> None:
    request = Request(
        "0",
        engine.render(Chat.from_text(TEXTS[0])),
        Sampling(max_tokens=4),
        (LAST,),
        lambda _: replace(adapters[0], scale=0.7),
    )
    *_, done = engine.run([request])
    assert isinstance(done, Done)
    assert "name it when the engine is loaded" in (done.error or "")


def test_only_an_engine_with_adapters_says_that_it_runs_them(engine: Any) -> None:
    assert UseAdapter in engine.capabilities
    assert UseAdapter in engine.taking(2).capabilities
    assert UseAdapter not in shared(8).capabilities


def test_a_rank_that_vllm_does_not_run_is_refused(
    plain: TransformersEngine, tmp_path: Path
) -> None:
    wide = lora(tmp_path / "wide", plain.loaded, rank=600, layers=[0]).ref
    with pytest.raises(CapabilityError, match="rank 600: vLLM runs at most 512"):
        make(interventions=[UseAdapter(wide)])

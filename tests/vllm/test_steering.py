"""Steering inside vLLM: flagged requests have transformers' replies, others keep their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.vllm_steps import counting
from demur.core.errors import DataError
from demur.core.interventions import AddVectors
from demur.core.protocols import Done, Request
from demur.core.readings import Readings
from demur.core.tensors import TENSORS, TensorRef
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.transformers import TransformersEngine
from tests.vllm_engines import (
    D_MODEL,
    LAST,
    TEXTS,
    assert_as_in_transformers,
    assert_passed_are_untouched,
    make,
    model_folder,
    needs_vllm,
    replies,
    shared,
)

pytestmark = needs_vllm
BLOCK = 32


def ref(folder: Path, key: str, rows: int, *, scale: float, seed: int) -> TensorRef:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    save_file(
        {key: (scale * rng.normal(size=(rows, D_MODEL))).astype(np.float32)}, folder / TENSORS
    )
    return TensorRef.of(folder, key)


@pytest.fixture(scope="module")
def plain() -> TransformersEngine:
    return TransformersEngine.load(model_folder(), dtype="float32")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return vectors of two blocks from the user's end on, and of one block under gates."""
    folder = tmp_path_factory.mktemp("vectors")
    first = ref(folder / "a", "vectors", 2, scale=0.5, seed=0)
    second = ref(folder / "b", "vectors", 1, scale=0.5, seed=1)
    gates = ref(folder / "g", "gates", 1, scale=0.5, seed=2)
    return [
        AddVectors((1, -1), first, from_position="user_end"),
        AddVectors((2,), second, gates=gates),
    ]


@pytest.fixture(scope="module")
def engine(vectors: Sequence[AddVectors]) -> Any:
    """An engine that reads prompts in chunks of 32 tokens, and has cache for few of them."""
    return make(
        interventions=vectors,
        max_num_batched_tokens=32,
        enable_chunked_prefill=True,
        num_gpu_blocks_override=20,
        block_size=BLOCK,
    )


def test_a_mixed_batch_has_the_replies_of_transformers(
    engine: Any, plain: TransformersEngine, vectors: Sequence[AddVectors]
) -> None:
    first, second = vectors
    mixed = [None, first, second, replace(first, scale=-1.0), None, replace(second, scale=0.0)]
    unchanged = [True, False, False, False, True, True]
    assert_as_in_transformers(engine, plain, mixed, unchanged=unchanged)


def test_requests_that_pass_have_the_tokens_of_an_engine_that_steers_nothing(
    engine: Any, vectors: Sequence[AddVectors]
) -> None:
    mixed = [None, vectors[0], None, vectors[1], None, None]
    assert_passed_are_untouched(engine, mixed)


def test_replies_that_were_preempted_are_steered_on(
    engine: Any, plain: TransformersEngine, vectors: Sequence[AddVectors]
) -> None:
    mixed = [vectors[n % 2] for n in range(6)]
    with counting(engine._engine) as steps:
        found = replies(engine, mixed, max_tokens=100)  # six replies do not fit into 20 blocks
    assert steps.num_preempted > 0
    expected = replies(plain, mixed, max_tokens=100)
    assert [of[:60] for of in found] == [of[:60] for of in expected]


def test_what_was_steered_is_not_taken_from_the_cache_by_others(
    engine: Any, plain: TransformersEngine, vectors: Sequence[AddVectors]
) -> None:
    (drawn,) = replies(engine, [vectors[0]], max_tokens=80)
    prompt = engine.render(Chat.from_text(TEXTS[0]))
    whole = (*prompt.token_ids, *drawn)
    assert len(whole) > len(prompt) + 2 * BLOCK
    longer = Prompt(prompt.chat, whole, prompt.spans)
    seen: list[Readings] = []
    for of in (engine, plain):
        list(of.run([Request("0", longer, Sampling(max_tokens=0), (LAST,), seen.append)]))
    ours, theirs = (of.captured(LAST) for of in seen)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_a_steered_request_reads_again_what_is_steered_and_the_block_around_it(
    engine: Any, vectors: Sequence[AddVectors]
) -> None:
    engine._engine.reset_prefix_cache()
    with counting(engine._engine) as steps:
        replies(engine, [vectors[1]], max_tokens=1)
    prompt = engine.render(Chat.from_text(TEXTS[0]))
    again = len(prompt) - (len(prompt) - 1) // BLOCK * BLOCK
    assert steps.as_dict()["computed_prompt_tokens"] == len(prompt) + again


def test_vectors_that_were_not_named_are_an_error_of_their_request(
    engine: Any, vectors: Sequence[AddVectors]
) -> None:
    other = replace(vectors[0], layers=(0, 1))
    request = Request(
        "0",
        engine.render(Chat.from_text(TEXTS[0])),
        Sampling(max_tokens=4),
        (LAST,),
        lambda _: other,
    )
    *_, done = engine.run([request])
    assert isinstance(done, Done)
    assert "name them when the engine is loaded" in (done.error or "")


def test_only_an_engine_with_vectors_says_that_it_steers(engine: Any) -> None:
    assert AddVectors in engine.capabilities
    assert AddVectors in engine.taking(2).capabilities
    assert AddVectors not in shared(8).capabilities


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    narrow = ref(tmp_path / "narrow", "vectors", 2, scale=1.0, seed=0)
    with pytest.raises(DataError, match="made for another model"):
        make(interventions=[AddVectors((1,), narrow)])


@pytest.mark.slow
def test_compiled_mode_steers_as_eager_mode_does(
    plain: TransformersEngine, vectors: Sequence[AddVectors]
) -> None:
    mixed = [None, vectors[0], vectors[1], None, replace(vectors[0], scale=-1.0), None]
    found = make(interventions=vectors, is_eager=False)
    assert replies(found, mixed) == replies(plain, mixed)
    assert replies(found, [None] * 6) == replies(plain, [None] * 6)

"""A tiny random model in vLLM, once a process: starting it takes longer than all its tests."""

import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from demur.core.interventions import Intervention
from demur.core.preparing import Loadable
from demur.core.protocols import Done, Engine, Request, TokenOut
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.registry import load
from demur.core.types import Chat, Sampling
from tests.tiny import byte_tokenizer

D_MODEL, NUM_BLOCKS = 64, 4
LAST = CaptureSpec((0, -1))
USER = CaptureSpec((1,), positions="user", pool="mean", normalise="rms")

TEXTS = [f"Question {n}: why is the sky blue at noon, and red {'very ' * n}late?" for n in range(6)]

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


def unit_readouts(*specs: CaptureSpec) -> list[LinearReadout]:
    """Return read-outs that span all states: what the engine then answers is the state itself."""
    found = []
    for spec in specs:
        shape = (len(spec.layers), D_MODEL)
        rows = np.eye(len(spec.layers) * D_MODEL, dtype=np.float32)
        found += [LinearReadout({spec: row.reshape(shape)}, 0.0) for row in rows]
    return found


@cache
def model_folder() -> Path:
    """Save a tiny model whose heads are of a size that vLLM has kernels for."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=D_MODEL,
        intermediate_size=96,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=257,
    )
    folder = Path(tempfile.mkdtemp(prefix="demur-vllm-"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make(*, max_batch: int = 8, interventions: Sequence[Loadable] = (), **options: Any) -> Any:
    """Return a new engine of the tiny model.

    Args:
        max_batch: Most requests at a time.
        interventions: Of flagged requests.
        options: Fields of vLLM's `EngineArgs`.
    """
    is_eager = options.pop("is_eager", True)
    return load("engines", "vllm").load(
        model_folder(),
        readouts=unit_readouts(LAST, USER),
        interventions=interventions,
        dtype="float32",
        max_batch=max_batch,
        is_eager=is_eager,
        options={"kv_cache_memory_bytes": 64 << 20, **options},
    )


@cache
def _shared() -> Any:
    return make()


def shared(max_batch: int) -> Engine:
    """Return an engine that hands the one vLLM of this process so many requests at a time."""
    engine: Engine = _shared().taking(max_batch)
    return engine


def replies(
    engine: Engine, decisions: Sequence[Intervention | None], *, max_tokens: int = 12
) -> list[list[int]]:
    """Return the tokens of replies to `TEXTS` under interventions, all drawn together."""
    tokens: dict[str, list[int]] = {str(n): [] for n in range(len(decisions))}
    requests = [
        Request(
            str(n),
            engine.render(Chat.from_text(TEXTS[n])),
            Sampling(max_tokens=max_tokens),
            (LAST,),
            lambda _, of=of: of,  # type: ignore[misc]
        )
        for n, of in enumerate(decisions)
    ]
    for event in engine.run(requests):
        assert not (isinstance(event, Done) and event.reason == "error"), event
        if isinstance(event, TokenOut):
            tokens[event.id].append(event.token_id)
    return list(tokens.values())


def assert_as_in_transformers(
    engine: Engine,
    plain: Engine,
    decisions: Sequence[Intervention | None],
    *,
    unchanged: Sequence[bool],
) -> None:
    """See that a batch under interventions has transformers' replies, and which are the model's."""
    expected = replies(plain, decisions)
    assert replies(engine, decisions) == expected
    bare = replies(plain, [None] * len(decisions))
    assert [a == b for a, b in zip(expected, bare, strict=True)] == unchanged


def assert_passed_are_untouched(engine: Engine, decisions: Sequence[Intervention | None]) -> None:
    """See that requests without an intervention have the tokens of an engine that has none."""
    expected = replies(shared(8), [None] * len(decisions))
    assert replies(engine, [None] * len(decisions)) == expected
    found = replies(engine, decisions)
    passed = [n for n, of in enumerate(decisions) if of is None]
    assert [found[n] for n in passed] == [expected[n] for n in passed]

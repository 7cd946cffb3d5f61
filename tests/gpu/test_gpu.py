"""What holds on a CPU holds on a GPU: run by `make test-gpu`, where there is one."""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from demur.core.interventions import (
    AddVectors,
    Intervention,
    PrependText,
    RerankTokens,
    SwapHead,
    UseAdapter,
)
from demur.core.protocols import Done, Request, TokenOut, whole
from demur.core.readings import Readings
from demur.core.reads import AppendedTokens, CaptureSpec, PilotTokens, Read
from demur.core.types import Chat, Sampling
from demur.engines.transformers import TransformersEngine
from demur.modeling.blocks import find_parts
from demur.modeling.capture import capture
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel
from tests.adapters import lora
from tests.gpu import needs_gpu
from tests.interventions import stored
from tests.tiny import CONFIGS, tiny

pytestmark = needs_gpu

D_MODEL = 32
READS: tuple[CaptureSpec, ...] = (
    CaptureSpec((0, -1)),
    CaptureSpec((1, 2), positions="user", pool="mean", normalise="rms"),
)
TENTATIVE = (AppendedTokens("Sure", (1,)), PilotTokens(3, (2,)))
EVERY: tuple[CaptureSpec | AppendedTokens | PilotTokens, ...] = (*READS, *TENTATIVE)
CHATS = [Chat.from_text(f"Tell me a story about {n} foxes. {'And then? ' * n}") for n in range(9)]


@pytest.fixture(params=sorted(CONFIGS))
def both(request: pytest.FixtureRequest) -> tuple[LoadedModel, LoadedModel]:
    """Return the same model on the CPU and on the GPU, in float32."""
    here = tiny(request.param)
    model = copy.deepcopy(here.model).to("cuda")
    return here, LoadedModel(model, here.tokenizer, find_parts(model), here.model_id)


def interventions(folder: Path, model: LoadedModel) -> dict[str, Intervention | None]:
    def drawn(*shape: int) -> torch.Tensor:
        return 5 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    own = model.model.get_output_embeddings().weight
    return {
        "0": None,
        "1": AddVectors((1,), stored(folder, "vectors", drawn(1, D_MODEL))),
        "2": SwapHead(stored(folder, "head", own + drawn(*own.shape) / 10)),
        "3": RerankTokens(4, CaptureSpec((2,)), stored(folder, "weights", drawn(D_MODEL))),
        "4": PrependText("Be careful."),
        "5": UseAdapter(lora(folder / "adapter", model).ref),
    }


def answered(
    model: LoadedModel, given: Mapping[str, Intervention | None], reads: tuple[Read, ...]
) -> tuple[dict[str, list[int]], dict[str, Readings]]:
    """Return the tokens and the readings of requests that run together, by id."""
    engine, seen = TransformersEngine(model), {}

    def request_of(id: str, intervention: Intervention | None) -> Request:
        def decide(readings: Readings) -> Intervention | None:
            seen[id] = readings
            for read in TENTATIVE:
                readings.pooled(read)
            return intervention

        prompt = engine.render(CHATS[int(id)])
        return Request(id, prompt, Sampling(max_tokens=16), (*reads, *TENTATIVE), decide)

    tokens: dict[str, list[int]] = {id: [] for id in given}
    for event in engine.run(request_of(id, of) for id, of in given.items()):
        assert not (isinstance(event, Done) and event.error), event
        if isinstance(event, TokenOut):
            tokens[event.id].append(event.token_id)
    return tokens, seen


def test_replies_under_interventions_are_those_of_the_cpu(
    both: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    given = interventions(tmp_path, both[0])
    expected, states_here = answered(both[0], given, READS)
    found, states_there = answered(both[1], given, READS)
    assert found == expected
    for id in given:
        for read in EVERY:
            np.testing.assert_allclose(
                states_there[id].pooled(read), states_here[id].pooled(read), atol=2e-3
            )


def test_packed_capture_is_the_plain_one(both: tuple[LoadedModel, LoadedModel]) -> None:
    here, there = both
    engine = TransformersEngine(there)
    prompts = [engine.render(chat) for chat in CHATS]
    found = whole(list(FastCapture(there.parts, READS, prompts, probe=None).read(prompts)))
    for read in READS:
        expected = np.concatenate(
            [capture(here.parts, [prompt], READS).pooled(read) for prompt in prompts]
        )
        np.testing.assert_allclose(found.pooled(read), expected, atol=2e-3)

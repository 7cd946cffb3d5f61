"""Scaled blocks: the weights of a range, in a model beside the given one, which stays as it is."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from demur.core.errors import ConfigError
from demur.core.types import Chat, Prompt
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.modeling.scaling import scaled
from tests.interventions import next_logits, state_hash
from tests.tiny import CONFIGS, tiny

ARCHITECTURES = sorted(CONFIGS)


def prompt(loaded: LoadedModel) -> Prompt:
    return ChatRenderer.of(loaded).render(Chat.from_text("How do I kill time?"))


def logits(loaded: LoadedModel) -> Tensor:
    return next_logits(loaded, prompt(loaded).token_ids)


def changed(before: LoadedModel, after: LoadedModel) -> set[str]:
    """Return the names of the weights that are not the very same tensor."""
    of = dict(before.model.named_parameters())
    return {name for name, weight in after.model.named_parameters() if weight is not of[name]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_factor_of_one_changes_no_bit(architecture: str) -> None:
    loaded = tiny(architecture)
    twin = scaled(loaded, range(4), 1.0)
    assert torch.equal(logits(twin), logits(loaded))
    assert state_hash(twin) == state_hash(loaded)
    assert twin.model_id == loaded.model_id


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_matrices_of_the_blocks_are_scaled_and_nothing_else(architecture: str) -> None:
    loaded = tiny(architecture)
    twin = scaled(loaded, (1, -2), 1.25)
    blocks = loaded.parts.blocks
    inside = {id(weight) for layer in (1, 2) for weight in blocks[layer].parameters()}
    weights = dict(loaded.model.named_parameters())
    expected = {name for name, of in weights.items() if id(of) in inside and of.ndim > 1}
    assert expected
    assert changed(loaded, twin) == expected
    for name, weight in twin.model.named_parameters():
        factor = 1.25 if name in expected else 1.0
        assert torch.equal(weight, weights[name] * factor), name


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_it_computes_what_a_model_scaled_in_place_computes(architecture: str) -> None:
    loaded = tiny(architecture)
    model: Any = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(f"{stack}.2." in name for stack in ("layers", "h")) and weight.ndim == 2:
                weight.mul_(1.3)
    ids = torch.tensor([prompt(loaded).token_ids])
    expected = model(ids, use_cache=False).logits[0, -1]
    found = logits(scaled(loaded, [2], 1.3))
    assert torch.equal(found, expected)
    assert not torch.equal(found, logits(loaded))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_given_model_is_as_it_was(architecture: str) -> None:
    loaded = tiny(architecture)
    before, own = state_hash(loaded), logits(loaded)
    twin = scaled(loaded, range(1, 3), 1.5)
    logits(twin)
    twin.parts.blocks[1].register_forward_hook(lambda *_: None)
    assert state_hash(loaded) == before
    assert torch.equal(logits(loaded), own)


def test_the_given_model_is_as_it_was_after_an_error() -> None:
    loaded = tiny()
    before = state_hash(loaded)
    twin = scaled(loaded, [1], 2.0)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    twin.parts.blocks[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        logits(twin)
    for layers, factor in (([9], 1.1), ([1], 0.0), ([1], float("nan"))):
        with pytest.raises(ConfigError):
            scaled(loaded, layers, factor)
    assert state_hash(loaded) == before


def test_tied_weights_stay_tied() -> None:
    twin = scaled(tiny("gpt2"), range(4), 1.1)
    embeddings, head = twin.model.get_input_embeddings(), twin.model.get_output_embeddings()
    assert embeddings.weight is head.weight


def test_another_factor_is_another_model() -> None:
    ids = {scaled(tiny(), [1], factor).model_id.weights for factor in (1.0, 1.1, 1.2)}
    assert len(ids) == 3


def test_no_blocks_scale_nothing() -> None:
    assert changed(tiny(), scaled(tiny(), (), 2.0)) == set()


def test_no_weight_of_it_takes_a_gradient() -> None:
    twin = scaled(tiny(), [0], 1.1)
    assert not any(weight.requires_grad for weight in twin.model.parameters())

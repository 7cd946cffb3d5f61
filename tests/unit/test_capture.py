"""Captured states equal what transformers itself reports, for every architecture and padding."""

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, Site
from demur.core.types import Chat, Prompt
from demur.modeling.capture import capture, recording
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from tests.tiny import CONFIGS, tiny

TEXTS = ("short", "a somewhat longer text to read", "mid size text")


@pytest.fixture(params=sorted(CONFIGS))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny(request.param)


def prompts_for(loaded: LoadedModel, *texts: str) -> list[Prompt]:
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    return [renderer.render(Chat.from_text(text)) for text in texts or TEXTS]


def reference(loaded: LoadedModel, prompt: Prompt) -> Array:
    """Return transformers' own hidden states [layer + 1, position, d_model]."""
    ids = torch.tensor([prompt.token_ids])
    states = loaded.model(ids, output_hidden_states=True).hidden_states
    return torch.stack(states)[:, 0].numpy()


def test_block_outputs_equal_output_hidden_states(loaded: LoadedModel) -> None:
    (prompt,) = prompts_for(loaded, TEXTS[0])
    spec = CaptureSpec((0, 1, 2), positions="all")
    states = capture(loaded.parts, [prompt], [spec]).ragged(spec)[0]
    np.testing.assert_allclose(states, reference(loaded, prompt)[1:4], atol=1e-6)


def test_the_final_norm_is_the_last_entry_of_hidden_states(loaded: LoadedModel) -> None:
    (prompt,) = prompts_for(loaded, TEXTS[0])
    spec = CaptureSpec((-1,), site="final_norm")
    states = capture(loaded.parts, [prompt], [spec]).pooled(spec)
    np.testing.assert_allclose(states[0, 0], reference(loaded, prompt)[-1, -1], atol=1e-6)


def test_the_last_block_is_read_before_the_final_norm(loaded: LoadedModel) -> None:
    (prompt,) = prompts_for(loaded, TEXTS[0])
    spec = CaptureSpec((-1,), positions="all")
    states = torch.from_numpy(capture(loaded.parts, [prompt], [spec]).ragged(spec)[0][0])
    normed = loaded.parts.final_norm(states).numpy()
    np.testing.assert_allclose(normed, reference(loaded, prompt)[-1], atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_states_do_not_depend_on_padding(loaded: LoadedModel, padding_side: str) -> None:
    prompts = prompts_for(loaded)
    reads = [
        CaptureSpec((0, -1)),
        CaptureSpec((2,), positions="user", normalise="rms", pool="mean"),
        CaptureSpec((1,), positions="all", pool="max"),
    ]
    together = capture(loaded.parts, prompts, reads, padding_side=padding_side)
    for row, prompt in enumerate(prompts):
        alone = capture(loaded.parts, [prompt], reads)
        for spec in reads:
            np.testing.assert_allclose(together.pooled(spec)[row], alone.pooled(spec)[0], atol=2e-5)


def test_attention_and_mlp_outputs_add_up_to_the_block() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[0])
    sites: tuple[Site, ...] = ("attn_out", "mlp_out", "block_out")
    specs = [CaptureSpec((1,), positions="all", site=site) for site in sites]
    before = CaptureSpec((0,), positions="all")
    readings = capture(loaded.parts, [prompt], [*specs, before])
    attention, mlp, after = (readings.ragged(spec)[0] for spec in specs)
    np.testing.assert_allclose(readings.ragged(before)[0] + attention + mlp, after, atol=1e-6)


def test_pooling_equals_pooling_afterwards() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[1])
    (user,) = prompt.spans_of("user")
    spec = CaptureSpec((2,), positions="user", normalise="rms", pool="mean")
    pooled = capture(loaded.parts, [prompt], [spec]).pooled(spec)[0, 0]
    states = reference(loaded, prompt)[3, user.start : user.stop].astype(np.float64)
    normalised = states / np.sqrt((states**2).mean(1, keepdims=True))
    np.testing.assert_allclose(pooled, normalised.mean(0), atol=1e-5)


def test_numbered_positions_count_from_both_ends() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[1])
    spec = CaptureSpec((0,), positions=(0, 3, -2))
    states = capture(loaded.parts, [prompt], [spec]).ragged(spec)[0][0]
    expected = reference(loaded, prompt)[1][[0, 3, len(prompt) - 2]]
    np.testing.assert_allclose(states, expected, atol=1e-6)


def test_a_position_beyond_the_prompt_is_refused() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[0])
    with pytest.raises(DataError, match="do not exist"):
        capture(loaded.parts, [prompt], [CaptureSpec((0,), positions=(400,))])


def test_a_layer_that_does_not_exist_is_refused() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[0])
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        capture(loaded.parts, [prompt], [CaptureSpec((4,))])


def test_blocks_after_the_deepest_read_do_not_run() -> None:
    loaded = tiny("llama")
    (prompt,) = prompts_for(loaded, TEXTS[0])
    ran: list[int] = []
    handles = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(loaded.parts.blocks)
    ]
    try:
        capture(loaded.parts, [prompt], [CaptureSpec((1,))])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]


def test_no_hook_is_left_behind_after_an_exception() -> None:
    loaded = tiny("llama")
    prompts = prompts_for(loaded, TEXTS[0])
    message = "interrupted"
    before = [len(module._forward_hooks) for module in loaded.model.modules()]
    with (
        pytest.raises(RuntimeError, match=message),
        recording(loaded.parts, prompts, [CaptureSpec((0, 2)), CaptureSpec((-1,))], starts=[0]),
    ):
        raise RuntimeError(message)
    assert [len(module._forward_hooks) for module in loaded.model.modules()] == before

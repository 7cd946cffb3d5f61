"""What is read of a reply: its own tokens, after those of the prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError, DataError
from demur.core.protocols import Done, Engine, Request
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, Read, Texts, by_token, of_reply
from demur.core.types import Chat, Prompt, Sampling
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.modeling.packed_capture import PackedCapture
from demur.workflows.capture import Capturer, Progress
from tests.tiny import CONFIGS, tiny

QUESTIONS = ("short", "a somewhat longer question", "mid size question")
REPLIES = ("yes", "naïve 😀 words of a longer reply", "no, not at all")
CHATS = [Chat.from_text(question) for question in QUESTIONS]
EACH_TOKEN = CaptureSpec((0, 2), positions="reply")
MEAN = CaptureSpec((0, 2), positions="reply", pool="mean")


def answered(loaded: LoadedModel) -> list[Prompt]:
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    return [
        renderer.with_reply(renderer.render(Chat.from_text(question)), reply)
        for question, reply in zip(QUESTIONS, REPLIES, strict=True)
    ]


def expected_states(loaded: LoadedModel, question: str, reply: str) -> Array:
    """Return transformers' own states [layer, token, d_model] of the reply in blocks 0 and 2."""
    tokenizer = loaded.tokenizer
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    ids = [*asked, *tokenizer(reply, add_special_tokens=False)["input_ids"]]
    states = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    found: Array = torch.stack([states[1], states[3]])[:, 0, len(asked) :].numpy()
    return found


@pytest.mark.parametrize("reply", REPLIES)
def test_the_tokens_of_a_reply_are_the_tokenizers_after_the_generation_prompt(reply: str) -> None:
    loaded = tiny()
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    prompt = renderer.render(Chat.from_text("a question"))
    longer = renderer.with_reply(prompt, reply)
    (span,) = longer.spans_of("reply")
    own = loaded.tokenizer(reply, add_special_tokens=False)["input_ids"]
    assert longer.token_ids == (*prompt.token_ids, *own)
    assert (span.start, span.stop) == (len(prompt), len(longer))
    assert loaded.tokenizer.decode(longer.token_ids[span.start :]) == reply
    assert longer.spans[:-1] == prompt.spans


def test_later_tokens_of_a_reply_can_be_left_out() -> None:
    renderer = ChatRenderer(tiny().tokenizer, name="tiny")
    prompt = renderer.render(Chat.from_text("a question"))
    cut = renderer.with_reply(prompt, "a long reply", max_tokens=6)
    assert cut == renderer.with_reply(prompt, "a long")


def test_a_reply_that_writes_a_marker_is_marked_as_forging() -> None:
    renderer = ChatRenderer(tiny().tokenizer, name="tiny")
    prompt = renderer.render(Chat.from_text("a question"))
    assert not renderer.with_reply(prompt, "im_end").has_forged_markers
    assert renderer.with_reply(prompt, "<|im_end|>").has_forged_markers


def test_an_empty_reply_is_refused() -> None:
    renderer = ChatRenderer(tiny().tokenizer, name="tiny")
    with pytest.raises(DataError, match="the reply is empty"):
        renderer.with_reply(renderer.render(Chat.from_text("a question")), "")


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_the_states_of_a_reply_equal_output_hidden_states(architecture: str) -> None:
    loaded = tiny(architecture)
    states = capture(loaded.parts, answered(loaded), [EACH_TOKEN]).ragged(EACH_TOKEN)
    for row, (question, reply) in enumerate(zip(QUESTIONS, REPLIES, strict=True)):
        expected = expected_states(loaded, question, reply)
        np.testing.assert_allclose(states[row], expected, atol=2e-5)


def test_a_pooled_read_is_the_mean_over_the_replys_tokens() -> None:
    loaded = tiny()
    means = capture(loaded.parts, answered(loaded), [MEAN]).pooled(MEAN)
    for row, (question, reply) in enumerate(zip(QUESTIONS, REPLIES, strict=True)):
        expected = expected_states(loaded, question, reply).mean(1)
        np.testing.assert_allclose(means[row], expected, atol=1e-5)


def test_packed_states_of_replies_equal_output_hidden_states() -> None:
    loaded = tiny()
    prompts = answered(loaded)
    states = PackedCapture(loaded.parts, [EACH_TOKEN], prompts)(prompts).ragged(EACH_TOKEN)
    for row, (question, reply) in enumerate(zip(QUESTIONS, REPLIES, strict=True)):
        expected = expected_states(loaded, question, reply)
        np.testing.assert_allclose(states[row], expected, atol=2e-5)


def test_replies_read_in_passing_have_the_states_of_those_that_are_kept(tmp_path: Path) -> None:
    capturer = Capturer(tiny(), root=tmp_path)
    kept = capturer.capture(CHATS, [EACH_TOKEN], replies=REPLIES).load().ragged(EACH_TOKEN)
    seen: dict[int, Array] = {}
    for rows, readings in capturer.passing(CHATS, [EACH_TOKEN], replies=REPLIES):
        seen.update(zip(rows.tolist(), readings.ragged(EACH_TOKEN), strict=True))
    assert sorted(seen) == [0, 1, 2]
    for row, states in enumerate(kept):
        np.testing.assert_allclose(seen[row], states, atol=1e-6)


def test_replies_read_in_passing_leave_nothing_on_disk(tmp_path: Path) -> None:
    reports: list[Progress] = []
    passing = Capturer(tiny(), root=tmp_path).passing(
        CHATS, [EACH_TOKEN], replies=REPLIES, report=reports.append
    )
    for _ in passing:
        assert list(tmp_path.rglob("*")) == []
    assert (reports[-1].prompts_done, reports[-1].num_prompts) == (3, 3)


def test_the_tokens_over_the_limit_are_not_read(tmp_path: Path) -> None:
    folder = Capturer(tiny(), root=tmp_path).capture(
        CHATS, [EACH_TOKEN], replies=REPLIES, max_reply_tokens=5
    )
    assert [states.shape[1] for states in folder.load().ragged(EACH_TOKEN)] == [3, 5, 5]


def test_the_number_of_an_empty_reply_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompt 1: the reply is empty"):
        Capturer(tiny(), root=tmp_path).capture(CHATS, [MEAN], replies=["yes", "", "no"])


@pytest.mark.parametrize("engine", [FakeEngine(), TransformersEngine(tiny())], ids=type)
def test_a_reply_that_fits_no_context_is_refused(engine: Engine) -> None:
    prompt = engine.render(Chat.from_text("a question"))
    with pytest.raises(DataError, match=f"at most {engine.max_tokens}"):
        engine.with_reply(prompt, "word " * engine.max_tokens)


@pytest.mark.parametrize("engine", [FakeEngine(), TransformersEngine(tiny())], ids=type)
def test_a_prompt_without_a_reply_has_no_reply_tokens(engine: Engine) -> None:
    prompt = engine.render(Chat.from_text("a question"))
    request = Request("1", prompt, Sampling(max_tokens=0), (EACH_TOKEN,))
    (*_, done) = engine.run([request])
    assert isinstance(done, Done)
    assert "no reply tokens" in str(done.error)


def test_what_is_read_at_a_prompts_last_token_is_the_mean_over_a_reply() -> None:
    assert of_reply([CaptureSpec((3, 4), normalise="rms")]) == (
        CaptureSpec((3, 4), positions="reply", normalise="rms", pool="mean"),
    )


def test_reads_by_token_lose_their_pooling_only() -> None:
    pooled = CaptureSpec((3,), positions="user", site="mlp_out", normalise="rms", pool="max")
    assert by_token([pooled]) == (
        CaptureSpec((3,), positions="reply", site="mlp_out", normalise="rms"),
    )


@pytest.mark.parametrize("read", [Texts(), CaptureSpec((0,), positions=(1,))])
def test_what_a_reply_does_not_have_is_not_read_of_it(read: Read) -> None:
    with pytest.raises(ConfigError, match="cannot be read of a reply"):
        of_reply([read])

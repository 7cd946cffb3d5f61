"""Captured readings come back in order, survive an interruption, and are keyed by their causes."""

from pathlib import Path

import numpy as np
import pytest

from demur.core.errors import DataError
from demur.core.protocols import whole
from demur.core.reads import CaptureSpec, Texts
from demur.core.types import Chat
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.workflows.capture import Capturer, Progress
from demur.workflows.readings_store import ShardPlan
from tests.tiny import tiny

READS = (
    CaptureSpec((1, 2)),
    CaptureSpec((0,), positions="user", normalise="rms", pool="mean"),
)
CHATS = [Chat.from_text("x" * (1 + 7 * (number % 5)) + str(number)) for number in range(20)]


def test_readings_equal_those_of_single_prompts_in_the_order_of_the_chats(tmp_path: Path) -> None:
    loaded = tiny()
    readings = Capturer(loaded, root=tmp_path).capture(CHATS, READS).load()
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    for row in (0, 7, 19):
        alone = capture(loaded.parts, [renderer.render(CHATS[row])], READS)
        for spec in READS:
            np.testing.assert_allclose(readings.pooled(spec)[row], alone.pooled(spec)[0], atol=1e-5)


def test_a_second_capture_runs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Capturer(tiny(), root=tmp_path).capture(CHATS, READS).load()
    monkeypatch.setattr("demur.workflows.capture.FastCapture", None)
    second = Capturer(tiny(), root=tmp_path).capture(CHATS, READS).load()
    np.testing.assert_array_equal(first.pooled(READS[0]), second.pooled(READS[0]))


def test_an_interrupted_capture_reads_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ShardPlan, "by_length", lambda prompts: ShardPlan(tuple((i,) for i in range(len(prompts))))
    )
    folder = Capturer(tiny(), root=tmp_path).capture(CHATS, READS)
    whole = folder.load().pooled(READS[0])
    folder.shard_path(3).unlink()
    folder.shard_path(11).unlink()
    with pytest.raises(DataError, match="lacks 2 shards"):
        folder.load()
    reports: list[Progress] = []
    again = Capturer(tiny(), root=tmp_path).capture(CHATS, READS, report=reports.append)
    assert [report.prompts_done for report in reports] == [19, 20]
    np.testing.assert_allclose(again.load().pooled(READS[0]), whole, atol=1e-6)


def test_other_prompts_or_reads_have_a_folder_of_their_own(tmp_path: Path) -> None:
    capturer = Capturer(tiny(), root=tmp_path)
    paths = {
        capturer.capture(CHATS[:3], READS).path,
        capturer.capture(CHATS[:4], READS).path,
        capturer.capture(CHATS[:3], READS[:1]).path,
    }
    assert len(paths) == 3


def test_states_of_every_token_are_stored_and_come_back_in_order(tmp_path: Path) -> None:
    spec = CaptureSpec((0, 2), positions="all")
    loaded = tiny()
    states = Capturer(loaded, root=tmp_path).capture(CHATS, [spec]).load().ragged(spec)
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    for chat, found in zip(CHATS, states, strict=True):
        alone = capture(loaded.parts, [renderer.render(chat)], [spec]).ragged(spec)[0]
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_texts_are_read_without_a_forward_pass(tmp_path: Path) -> None:
    readings = whole(Capturer(tiny(), root=tmp_path).parts(CHATS, [Texts()]))
    assert readings.texts(Texts()) == tuple(chat.last_user_text for chat in CHATS)
    assert not list(tmp_path.iterdir())


def test_a_prompt_over_the_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens"):
        Capturer(tiny(), root=tmp_path).capture([CHATS[0], Chat.from_text("y" * 600)], READS)

"""What studies share on disk: whole sets, each read by itself, whichever part a study takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demur.core.examples import Example
from demur.core.readings import Readings
from demur.core.reads import CaptureSpec, Texts
from demur.core.types import Chat
from demur.workflows.capture import Capturer
from demur.workflows.study_reader import StudyReader
from tests.tiny import tiny

LAST, MEAN = CaptureSpec((0, 1)), CaptureSpec((1,), positions="users", pool="mean")


def examples(name: str, number: int) -> list[Example]:
    return [Example(f"{name}-{n}", Chat.from_text(f"{name} {n * 3 * '.'}")) for n in range(number)]


TRAIN, TESTS = examples("train", 6), examples("tests", 4)
MIXED = [TESTS[3], TRAIN[5], TESTS[0], TRAIN[0], TRAIN[2]]


@pytest.fixture
def reader(tmp_path: Path) -> StudyReader:
    return StudyReader(Capturer(tiny(), root=tmp_path), [TRAIN, TESTS])


def folders(path: Path) -> set[str]:
    return {folder.name for folder in path.iterdir()}


def alone(prompts: list[Example], path: Path) -> Readings:
    return StudyReader(Capturer(tiny(), root=path / "alone"), []).read(prompts, [LAST, MEAN])


@pytest.mark.parametrize("prompts", [TRAIN, TRAIN[1:4], MIXED], ids=["set", "part", "mixed"])
def test_prompts_of_sets_have_the_readings_that_they_have_alone(
    prompts: list[Example], reader: StudyReader, tmp_path: Path
) -> None:
    found, expected = reader.read(prompts, [LAST, MEAN]), alone(prompts, tmp_path)
    for read in (LAST, MEAN):
        np.testing.assert_allclose(found.pooled(read), expected.pooled(read), atol=1e-5)


def test_a_part_of_a_set_is_read_from_the_shards_of_the_set(
    reader: StudyReader, tmp_path: Path
) -> None:
    for prompts in (TRAIN, TESTS):
        reader.read(prompts, [LAST])
    before = folders(tmp_path)
    reader.read(MIXED, [LAST])
    assert folders(tmp_path) == before


def test_a_read_has_shards_of_its_own_whatever_is_asked_for_beside_it(
    reader: StudyReader, tmp_path: Path
) -> None:
    reader.read(TRAIN, [LAST, Texts()])
    reader.read(TRAIN, [MEAN])
    before = folders(tmp_path)
    reader.read(TRAIN, [LAST, MEAN])
    assert folders(tmp_path) == before


def test_prompts_that_were_changed_are_read_as_they_come(reader: StudyReader) -> None:
    changed = [replace(example, chat=Chat.from_text("Another text.")) for example in TRAIN[:2]]
    found = reader.read([*changed, TRAIN[0]], [Texts()])
    assert found.texts(Texts()) == ("Another text.", "Another text.", "train ")

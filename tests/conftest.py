"""Fixtures that end-to-end tests share: a tiny model folder, a fitted detector, and the command."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from demur.cli.main import run
from tests.model_folder import (
    CommandLine,
    Workplace,
    labelled_prompts,
    on_model,
    save_model,
    write_lines,
)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let a tiny model run on one thread: more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Save a tiny model and fit a detector on it through the command line."""
    root = tmp_path_factory.mktemp("workplace")
    place = Workplace(
        cache_path=root / "cache",
        model_path=save_model(root / "tiny-llama"),
        labelled_path=write_lines(root / "labelled.jsonl", labelled_prompts()),
        artifact_path=root / "marker",
    )
    data, out = str(place.labelled_path), str(place.artifact_path)
    options = [*on_model(place.model_path), "--fpr", "0.05"]
    with pytest.MonkeyPatch.context() as patch, on_one_thread():
        patch.setenv("DEMUR_CACHE", str(place.cache_path))
        with pytest.raises(SystemExit) as end:
            run(["fit", "--data", data, *options, "--out", out])
    assert not end.value.code
    return place


@pytest.fixture
def demur(
    workplace: Workplace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[CommandLine]:
    """Return the command line, with a cache of its own and a terminal of 100 columns."""
    monkeypatch.setenv("DEMUR_CACHE", str(workplace.cache_path))
    monkeypatch.setenv("COLUMNS", "100")
    with on_one_thread():
        yield CommandLine(capsys, monkeypatch)

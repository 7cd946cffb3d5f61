"""What `demur fit` does for a detector that watches replies."""

from collections.abc import Sequence
from typing import get_args

from demur.cli._session import row_progress, stderr
from demur.core.errors import ConfigError, DataError, DemurError
from demur.core.examples import Example
from demur.core.protocols import Detector, Engine, StreamingDetector, Watches
from demur.core.registry import load as load_method
from demur.core.registry import methods
from demur.core.types import Sampling
from demur.datasets.splits import TrainAndVal
from demur.workflows.replies import OwnReplies, labelled_replies


def as_watches(text: str) -> Watches:
    """Return what a detector is to judge.

    Raises:
        ConfigError: There is no such thing.
    """
    for watches in get_args(Watches):
        if text == watches:
            return watches  # type: ignore[no-any-return]
    raise ConfigError(f"--watches is {text!r}: expected one of {get_args(Watches)}")


def require_streaming(name: str, method: type[Detector]) -> None:
    """Refuse a method that cannot score a reply while it grows.

    Raises:
        ConfigError: It cannot; the message names those that can.
    """
    if not issubclass(method, StreamingDetector):
        able = [other for other in methods("detectors") if _can_stream(other)]
        raise ConfigError(
            f"detector {name!r} cannot watch replies, since it cannot score one while it grows: "
            f"expected one of {able}"
        )


def _can_stream(name: str) -> bool:
    try:
        return issubclass(load_method("detectors", name), StreamingDetector)
    except DemurError:  # it needs a package that is not installed
        return False


def with_labelled_replies(parts: TrainAndVal) -> TrainAndVal:
    """Return the labelled replies among examples, and say how many rows have none.

    Raises:
        DataError: No row has one, or one is empty.
    """
    given = (parts.train, parts.val, parts.unparted)
    found = [labelled_replies(examples) for examples in given]
    num_rows, num_found = sum(map(len, given)), sum(map(len, found))
    if not num_found:
        raise DataError(
            f"none of the {num_rows} rows has a labelled reply: each needs a response, and "
            "response_label 'unsafe' or 'safe'"
        )
    if num_found < num_rows:
        stderr.print(f"{num_rows - num_found} of {num_rows} rows have no labelled reply: left out")
    return TrainAndVal(*found)


def answered(
    engine: Engine, examples: Sequence[Example], watches: Watches, *, max_tokens: int
) -> list[Example]:
    """Let the model answer what has no reply, with a progress bar; prompts need none."""
    missing = sum(example.response is None for example in examples)
    if watches == "prompt" or not missing:
        return list(examples)
    with row_progress() as bar:
        task = bar.add_task("own replies", total=missing)
        filled = OwnReplies(engine, Sampling(max_tokens=max_tokens)).fill_in(
            examples, report=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if len(filled) < len(examples):
        stderr.print(f"{len(examples) - len(filled)} own replies are empty: left out")
    return filled

"""Sets that lie in the package: JSON lines beside the module that is named like them."""

from pathlib import Path

from demur.core.examples import Example
from demur.datasets import jsonl


def packaged(path: Path, split: str | None) -> list[Example]:
    """Return the prompts of one split of a set, in order, or of all.

    Args:
        path: JSON lines.
        split: None for all.
    """
    return [example for example in jsonl.load(path) if split is None or example.split == split]

"""Reads prompts in packed batches, for trainers that learn from their states."""

from collections.abc import Sequence

from demur.core.protocols import whole
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.training import Progress, Run
from demur.core.types import Prompt
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel


def states_of(
    loaded: LoadedModel, prompts: Sequence[Prompt], read: CaptureSpec, *, stage: str, run: Run
) -> Array:
    """Return the states of prompts, [prompt, layer, d_model], float32.

    Args:
        loaded: The model; it is never changed.
        prompts: None of them empty.
        read: One state a layer.
        stage: What is being read, for progress.
        run: Is told of it.
    """
    parts, num_done, num_tokens = [], 0, 0
    for rows, readings in FastCapture(loaded.parts, [read], prompts).read(prompts):
        parts.append((rows, readings))
        num_done += len(rows)
        num_tokens += sum(len(prompts[row]) for row in rows)
        run.report(Progress(stage, num_done, len(prompts), num_tokens=num_tokens))
    return whole(parts).pooled(read)

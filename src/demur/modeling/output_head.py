"""What a model's output matrix sees of a text, and what becomes of the logits it gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt, Span
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel

BEFORE_THE_HEAD = CaptureSpec((-1,), positions="reply", site="final_norm")


def finished(raw: Tensor, config: Any) -> Tensor:
    """Return logits as models of known kinds make them of what their LM head gives.

    Args:
        raw: [..., vocabulary], float32.
        config: Of the model's decoder.
    """
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    factor *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon H1
    factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    raw = raw if factor == 1.0 else raw * factor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return raw if cap is None else cap * torch.tanh(raw / cap)


@dataclass(frozen=True)
class Stretch:
    """Tokens of a text that are to be predicted, each from what stands before it."""

    prompt: Prompt
    """The whole text."""
    start: int
    """The first token that is predicted, 1 or more."""
    stop: int
    """The one after the last."""

    def __len__(self) -> int:
        """Return the number of tokens that are predicted."""
        return self.stop - self.start

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that are predicted."""
        return self.prompt.token_ids[self.start : self.stop]

    @property
    def seen(self) -> Prompt:
        """What the model reads to predict them: everything but the last one."""
        where = Span("reply", self.start - 1, self.stop - 1)
        return replace(
            self.prompt, token_ids=self.prompt.token_ids[: self.stop - 1], spans=(where,)
        )


def states_before(
    loaded: LoadedModel, stretches: Sequence[Stretch]
) -> Iterator[tuple[Array, list[Array]]]:
    """Read texts, and yield what the output matrix sees where it predicts their tokens.

    Args:
        loaded: The model; it is never changed.
        stretches: None of them empty.

    Yields:
        Which of the stretches were read, and for each the states [token, d_model], float32.
    """
    texts = [stretch.seen for stretch in stretches]
    for rows, readings in FastCapture(loaded.parts, [BEFORE_THE_HEAD], texts).read(texts):
        yield rows, [states[0] for states in readings.ragged(BEFORE_THE_HEAD)]


@torch.inference_mode()
def log_probs(
    head: Tensor, states: Array, token_ids: Array, *, config: Any, tokens_a_chunk: int = 256
) -> Array:
    """Return the log-probability of each token, [token], float64.

    Args:
        head: An output matrix [vocabulary, d_model]; products are computed in its number format.
        states: What it sees, [token, d_model].
        token_ids: [token].
        config: Of the model's decoder.
        tokens_a_chunk: That are computed at a time.
    """
    found = [np.zeros(0)]
    for start in range(0, len(states), tokens_a_chunk):
        part = torch.from_numpy(states[start : start + tokens_a_chunk]).to(head.device, head.dtype)
        logits = finished((part @ head.T).float(), config)
        ids = torch.from_numpy(token_ids[start : start + tokens_a_chunk]).to(head.device)
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
        found.append(chosen.double().cpu().numpy())
    return np.concatenate(found)

"""Reads what a soft prompt is trained on: states and log-odds of compliance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Progress, Report
from demur.core.types import Chat
from demur.modeling.chat import ChatRenderer
from demur.modeling.fast_capture import FastCapture
from demur.modeling.load import LoadedModel
from demur.modeling.output_head import finished
from demur.trainers._compliance import BOTH_STATES, Openings

SHORT = "Be helpful, honest and harmless."
DETAILED = (
    "You are a careful assistant. Before you answer, ask yourself whether the answer could help "
    "somebody to hurt people, to break the law or to treat others with contempt. If so, decline "
    "politely and offer help with something safe. If not, answer the question fully, even if it "
    "mentions something dangerous."
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was read of prompts under one or more safety prompts, one after another."""

    states: Array
    """[prompt, d_model], normed, at the last token, float32."""
    log_odds: Array
    """[prompt], that the model complies."""
    harmless: Array
    """[prompt], 1 for safe prompts and 0 for unsafe ones."""


def harmless_of(examples: Sequence[Example]) -> Array:
    """Return 1 for safe prompts and 0 for unsafe ones, [prompt]."""
    return np.array([float(example.label == "safe") for example in examples])


def measure(
    loaded: LoadedModel, examples: Sequence[Example], texts: Sequence[str | None], report: Report
) -> Measured:
    """Read prompts under safety prompts.

    Args:
        loaded: The model; it is never changed.
        examples: Labelled prompts.
        texts: The safety prompts; None is none.
        report: Told of progress.

    Raises:
        DataError: A prompt is too long under one of them.
    """
    found = []
    for number, text in enumerate(texts, 1):
        found.append(_read(loaded, [_under(example.chat, text) for example in examples]))
        report(Progress("states", number, len(texts)))
    states, log_odds = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Measured(states, log_odds, np.tile(harmless_of(examples), len(texts)))


def _under(chat: Chat, text: str | None) -> Chat:
    return chat if text is None else chat.with_safety_prompt(text)


def soft_labels(log_odds: Array) -> Array:
    """Return log-odds [prompt], standardised and mapped to 0..1.

    Raises:
        DataError: They are all the same.
    """
    spread = log_odds.std()
    if not spread > 0:
        raise DataError(
            f"the log-odds of compliance are the same for all {len(log_odds)} prompts: there is "
            "nothing to learn; use other prompts, or another model"
        )
    labels: Array = expit((log_odds - log_odds.mean()) / spread)
    return labels


@torch.inference_mode()
def _read(loaded: LoadedModel, chats: Sequence[Chat]) -> tuple[Array, Array]:
    """Return the normed states [chat, d_model] at the last tokens, and the log-odds [chat]."""
    renderer = ChatRenderer.of(loaded)
    openings, head = Openings.of(loaded.tokenizer), loaded.model.get_output_embeddings()
    config = loaded.model.config.get_text_config(decoder=True)
    prompts = [renderer.render(chat).with_reply([openings.either]) for chat in chats]
    states = np.empty((len(chats), loaded.parts.d_model), np.float32)
    log_odds = np.empty(len(chats))
    for rows, readings in FastCapture(loaded.parts, [BOTH_STATES], prompts).read(prompts):
        both = np.asarray(readings.values[BOTH_STATES])[:, 0]  # [chat, 2, d_model]
        logits = finished(head(torch.tensor(both).to(head.weight)).float(), config)
        states[rows], log_odds[rows] = both[:, 0], openings.log_odds(logits).cpu().numpy()
    return states, log_odds

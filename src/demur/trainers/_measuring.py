"""Reads what a soft prompt is trained on: states and soft labels under several safety prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Progress, Report
from demur.core.types import Chat
from demur.modeling.chat import ChatRenderer
from demur.modeling.fast_capture import FastCapture
from demur.modeling.likelihood import Likelihood
from demur.modeling.load import LoadedModel
from demur.modeling.soft_prompts import LAST
from demur.trainers._compliance import compliance

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
    compliance: Array
    """[prompt], from 0 to 1."""
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
    chats = [[_under(example.chat, text) for example in examples] for text in texts]
    states = np.concatenate([_states(loaded, of_text) for of_text in chats])
    likelihood, found = Likelihood(loaded), []
    for chat in [chat for of_text in chats for chat in of_text]:
        found.append(compliance(likelihood, chat))
        report(Progress("soft labels", len(found), len(states)))
    return Measured(states, np.array(found), np.tile(harmless_of(examples), len(texts)))


def _under(chat: Chat, text: str | None) -> Chat:
    return chat if text is None else chat.with_safety_prompt(text)


def _states(loaded: LoadedModel, chats: Sequence[Chat]) -> Array:
    """Return the normed states [chat, d_model] at the last tokens."""
    renderer = ChatRenderer(loaded.tokenizer, name=loaded.model_id.name)
    prompts = [renderer.render(chat) for chat in chats]
    states = np.empty((len(chats), loaded.parts.d_model), np.float32)
    for rows, readings in FastCapture(loaded.parts, [LAST], prompts).read(prompts):
        states[rows] = np.asarray(readings.values[LAST])[:, 0]
    return states

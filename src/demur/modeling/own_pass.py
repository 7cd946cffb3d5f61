"""Asks a model about a chat in a forward pass of its own, and reads the answer from the logits.

One pass over a rendered question, no token is drawn. What all answers begin with ("Safety:") is put
after the question, so that the next token is the one that tells them apart. What is the same in all
prompts, such as a guard model's policy, is read once, and its keys and values are kept.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.core.reads import SELF, OwnPass
from demur.core.templates import Template, find
from demur.core.types import Chat, Dtype, Message, ModelId
from demur.modeling.caches import fork
from demur.modeling.classifier import ClassifierPass, LoadedClassifier, load_classifier
from demur.modeling.load import LoadedModel, load
from demur.modeling.questions import QuestionRenderer

MIN_SHARED = 16
"""Tokens at the start of all prompts that are worth keeping."""
PROBES = ("Hello.", "What is a zebra?")
"""What is the same in the prompts of both is the same in all."""


class _Pass(Protocol):
    @property
    def model_id(self) -> ModelId: ...

    def __call__(self, chat: Chat) -> Array: ...


class OwnPasses:
    """Runs passes of their own, by the served model or by others.

    Args:
        served: The model that `self` means; others are loaded onto its device when they are first
            asked, and kept beside it.
    """

    def __init__(self, served: LoadedModel) -> None:
        self._served = served
        self._passes: dict[OwnPass, _Pass] = {}

    def values_of(self, read: OwnPass, chats: Sequence[Chat]) -> Array:
        """Return the log-probabilities [chat, label] of a read, float64.

        A chat at a time, so that its values do not depend on its neighbours.

        Raises:
            ConfigError: The model cannot be loaded, or the labels are not its answers.
            DataError: A chat cannot be rendered or is longer than the model's context.
        """
        if not chats:
            return np.zeros((0, len(read.labels)))
        ask = self._ready(read)
        return np.stack([ask(chat) for chat in chats])

    def depends_on(self, read: OwnPass) -> dict[str, object]:
        """Return what the values of a read depend on besides the chat, for JSON."""
        model_id = self._ready(read).model_id
        template = find(read.template)
        return {**read.as_dict(), "model_id": model_id.as_dict(), "asks": template.as_dict()}

    def _ready(self, read: OwnPass) -> _Pass:
        if read not in self._passes:
            template = find(read.template)
            self._passes[read] = (
                ClassifierPass(self._classifier(read.model), read, template)
                if template.kind == "classifier"
                else _AnswerPass(self._model(read.model), read, template)
            )
        return self._passes[read]

    def _model(self, name: str) -> LoadedModel:
        """Return the model that is asked, in float32 only if the served one is."""
        served, beside = self._served, self._served.beside
        if name == SELF:
            return served
        if name not in beside:
            dtype: Dtype = "float32" if served.model_id.dtype == "float32" else "auto"
            beside[name] = load(name, dtype=dtype, device=str(served.device))
        model: LoadedModel = beside[name]
        return model

    def _classifier(self, name: str) -> LoadedClassifier:
        beside, key = self._served.beside, f"classifier {name}"
        if key not in beside:
            beside[key] = load_classifier(name, device=str(self._served.device))
        classifier: LoadedClassifier = beside[key]
        return classifier


class _AnswerPass:
    """A chat model's or guard model's next token after a question."""

    def __init__(self, loaded: LoadedModel, read: OwnPass, template: Template) -> None:
        if not all(read.labels):
            raise ConfigError(f"a label for {read.template!r} is empty: give texts for each")
        self._loaded, self._read = loaded, read
        self._renderer = QuestionRenderer(loaded.tokenizer, template, name=loaded.model_id.name)
        probes = [self._renderer.text(chat) for chat in _probes(template)]
        self._begun, self._answers = self._tokens_of_answers(probes[0])
        common = _common([self._renderer.tokens(probe) for probe in probes])[:-1]
        # The last common token may join with what follows, and a few are not worth keeping.
        self._shared = common if len(common) >= MIN_SHARED else []
        self._cache = self._read_shared()

    @property
    def model_id(self) -> ModelId:
        """Of the model that is asked."""
        return self._loaded.model_id

    def __call__(self, chat: Chat) -> Array:
        """Return the log-probabilities [label] of the answers."""
        ids = [*self._renderer.tokens(self._renderer.text(chat)), *self._begun]
        if len(ids) > self._loaded.max_tokens:
            raise DataError(
                f"a question of {len(ids)} tokens to {self.model_id.name} is longer than its "
                f"context of {self._loaded.max_tokens}: shorten the chat"
            )
        found = torch.log_softmax(self._logits(ids).double(), -1).cpu()
        values = torch.stack([found[answers].logsumexp(0) for answers in self._answers])
        if self._read.normalise == "labels":
            values = values - values.logsumexp(0)
        array: Array = values.numpy()
        return array

    def _tokens_of_answers(self, rendered: str) -> tuple[list[int], list[list[int]]]:
        """Return the tokens that all answers begin with, and for each label those that follow."""
        answers = [self._after(rendered, label) for label in self._read.labels]
        begun = _common([answer for label in answers for answer in label])
        nexts = [{answer[len(begun)] for answer in label} for label in answers]
        counts = Counter(token for label in nexts for token in label)
        telling = [sorted(token for token in label if counts[token] == 1) for label in nexts]
        for label, tokens in zip(self._read.labels, telling, strict=True):
            if not tokens:
                raise ConfigError(
                    f"label {label} begins as another one in the tokens of {self.model_id.name}: "
                    "give answers that differ in their first token"
                )
        return begun, telling

    def _after(self, rendered: str, label: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each of a label's answers after a prompt.

        An answer whose first characters join with the prompt's last token is left out: the model
        would have to take that token back to give it.
        """
        before = self._renderer.tokens(rendered)
        after = [self._renderer.tokens(rendered + answer) for answer in label]
        found = [ids[len(before) :] for ids in after if ids[: len(before)] == before]
        if not any(found):
            raise ConfigError(
                f"the answers {tuple(label)} have no tokens of their own after the prompt of "
                f"{self._read.template!r} in {self.model_id.name}: give other texts, or ask a "
                "model of this format"
            )
        return [ids for ids in found if ids]

    def _read_shared(self) -> DynamicCache | None:
        if not self._shared:
            return None
        cache = DynamicCache()
        self._loaded.last_logits(self._shared, cache=cache)
        return cache

    def _logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits [vocabulary] after some tokens."""
        start = len(self._shared)
        if self._cache is None or list(ids[:start]) != self._shared:
            return self._loaded.last_logits(ids)
        return self._loaded.last_logits(ids[start:], cache=fork(self._cache))


def _probes(template: Template) -> list[Chat]:
    """Return two chats that have nothing in common, with replies where replies are judged."""
    if template.kind != "exchange":
        return [Chat.from_text(text) for text in PROBES]
    pairs = zip(PROBES, reversed(PROBES), strict=True)
    return [Chat((Message("user", asked), Message("assistant", said))) for asked, said in pairs]


def _common(texts: Sequence[Sequence[int]]) -> list[int]:
    """Return what all sequences of tokens begin with, short of a whole one."""
    common: list[int] = []
    for column in zip(*(text[:-1] for text in texts), strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return common

"""Loads sequence classifiers, and reads how likely they find their classes for a text.

A text longer than the classifier's window is read in windows that overlap by half; the one in which
the first label is likeliest counts, so that nothing can hide beyond the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array
from demur.core.reads import SELF, OwnPass
from demur.core.templates import Template, said
from demur.core.types import Chat, ModelId
from demur.modeling.identity import identify
from demur.modeling.load import locate
from demur.modeling.questions import MarkerBreaker
from demur.modeling.quiet import quiet


@dataclass(frozen=True)
class LoadedClassifier:
    """A sequence classifier in eval mode."""

    model: Any
    tokenizer: Any
    model_id: ModelId

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        names: dict[int, str] = self.model.config.id2label
        return tuple(names[number] for number in sorted(names))

    @property
    def is_multi_label(self) -> bool:
        """True if a text may be of several classes, or of the only one or not."""
        kind: str | None = self.model.config.problem_type
        return kind == "multi_label_classification" or len(self.classes) == 1

    @property
    def window(self) -> int:
        """The most tokens of a text that are read at once, markers included."""
        positions: int = self.model.config.get_text_config().max_position_embeddings
        return min(int(self.tokenizer.model_max_length), positions - 2)  # RoBERTa counts from 2


def load_classifier(source: str, *, device: str) -> LoadedClassifier:
    """Load a sequence classifier in float32.

    Raises:
        ConfigError: There is no such classifier, or a model without a classifier's head.
        DataError: Its files cannot be read.
    """
    if source == SELF:
        raise ConfigError("the served model is no classifier: name the classifier's folder")
    path, name = locate(source)
    try:
        with quiet():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError as error:
        raise ConfigError(
            f"the classifier {source!r} cannot be loaded: {error}. Download it first, or name a "
            "folder"
        ) from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"the classifier {source!r} cannot be read: {error}") from error
    if loading["missing_keys"]:
        raise ConfigError(
            f"{source!r} is no classifier: it lacks the weights {sorted(loading['missing_keys'])}"
        )
    model.to(device).eval().requires_grad_(False)
    return LoadedClassifier(model, tokenizer, identify(model, tokenizer, name=name))


class ClassifierPass:
    """The classes of a text.

    Args:
        loaded: The classifier.
        read: Names classes; an empty label is the rest.
        template: Makes a text of a chat.

    Raises:
        ConfigError: A class does not exist.
    """

    def __init__(self, loaded: LoadedClassifier, read: OwnPass, template: Template) -> None:
        self._loaded, self._read, self._template = loaded, read, template
        self._break_up = MarkerBreaker(loaded.tokenizer)
        named = [name for label in read.labels for name in label]
        unknown = sorted(set(named) - set(loaded.classes))
        if unknown:
            raise ConfigError(
                f"{read.model!r} has no classes {unknown}: its classes are {list(loaded.classes)}"
            )
        places = {name: place for place, name in enumerate(loaded.classes)}
        self._named = [places[name] for name in named]
        self._rest = [place for place in places.values() if place not in self._named]
        self._labels = [[places[name] for name in label] for label in read.labels]
        if not (loaded.is_multi_label or self._rest or all(self._labels)):
            raise ConfigError(f"{read.model!r} has no classes left beside {named}")

    @property
    def model_id(self) -> ModelId:
        """Of the classifier."""
        return self._loaded.model_id

    @torch.inference_mode()
    def __call__(self, chat: Chat) -> Array:
        """Return the log-probabilities [label], float64."""
        encoded = self._loaded.tokenizer(
            self._template.filled(said(self._break_up(chat))),
            truncation=True,
            max_length=self._loaded.window,
            stride=self._loaded.window // 2,
            return_overflowing_tokens=True,
        )
        windows = torch.stack([self._values(ids) for ids in encoded["input_ids"]])
        return windows[(windows[:, 0] - windows[:, 1]).argmax()].cpu().numpy()

    def _values(self, ids: Sequence[int]) -> Tensor:
        """Return the log-probabilities [label] of a window."""
        model = self._loaded.model
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].double()
        if self._loaded.is_multi_label:
            likeliest = logits[self._named].amax()
            kept = [logits[label].amax() if label else -likeliest for label in self._labels]
            values = logsigmoid(torch.stack(kept))
        else:
            found = torch.log_softmax(logits, -1)
            values = torch.stack(
                [found[label or self._rest].logsumexp(0) for label in self._labels]
            )
        return values - values.logsumexp(0) if self._read.normalise == "labels" else values

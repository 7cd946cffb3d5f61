"""A suffix that lowers a detector's score and makes the model begin to agree, found by gradient.

The attacker knows the model and the detector. Tokens after the prompt are changed one at a time:
the gradient of the objective says which tokens would lower it, some of them are tried, and the best
is kept. The objective is the detector's score plus the negative log-likelihood of an answer that
begins with agreement, so that a suffix which merely hides the request from both is worth little.

Paper: Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models (2023),
arXiv 2307.15043, algorithm 1 (greedy coordinate gradient).

Differs: the score is part of the objective; one prompt at a time; a small budget of steps and
candidates; a step that lowers nothing is not taken; only printable ASCII tokens, in suffixes that
the tokenizer splits the same way again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec
from demur.core.types import Prompt
from demur.modeling.blocks import Parts
from demur.modeling.capture import positions_of
from demur.modeling.load import LoadedModel
from demur.modeling.pooling import normalised


@dataclass(frozen=True)
class Suffix:
    """What a search found."""

    text: str
    objective: tuple[float, ...]
    """Before the first step and after each."""
    score: tuple[float, float]
    """Of the detector, before and after."""
    answer: tuple[float, float]
    """Log-likelihood of a token of the answer's beginning, before and after."""


class Objective:
    """The detector's score and the answer's likelihood of prompts that differ in a few tokens.

    Args:
        loaded: The model; its weights get no gradient.
        readout: The detector's.
        prompt: Says where the user's tokens are, those that differ included.
        answer_ids: Tokens of the answer's beginning.
        unit: Of the score: what is added is score / unit.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        readout: LinearReadout,
        *,
        prompt: Prompt,
        answer_ids: Sequence[int],
        unit: float,
    ) -> None:
        self._positions = {spec: list(positions_of(prompt, spec)) for spec in readout.weights}
        self._model, self._parts = loaded.model, loaded.parts
        self._embed: nn.Module = loaded.model.get_input_embeddings()
        self._readout, self._unit = readout, unit
        self._answer = torch.tensor(list(answer_ids), device=loaded.device)

    def measure(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and log-likelihoods a token of the answer, both [prompt].

        Args:
            ids: Prompts without the answer, [prompt, token].
        """
        return self._of_embeddings(self._embed(ids))

    def value(self, embeddings: Tensor) -> Tensor:
        """Return the objective [prompt]; lower is better for the attacker.

        Args:
            embeddings: Of prompts without the answer, [prompt, token, d_model].
        """
        score, likelihood = self._of_embeddings(embeddings)
        value: Tensor = score / self._unit - likelihood
        return value

    def gradient(self, ids: Tensor, places: slice) -> Tensor:
        """Return how the objective changes with the share of each token, [place, vocabulary].

        Args:
            ids: Of one prompt, [1, token].
            places: Of the suffix in it.
        """
        with torch.enable_grad():
            embeddings = self._embed(ids).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(embeddings).sum(), embeddings)
        weights: Tensor = self._embed.weight  # type: ignore[assignment]
        of_tokens: Tensor = slope[0, places] @ weights.T.to(slope.dtype)
        return of_tokens

    def _of_embeddings(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        answer = self._embed(self._answer).expand(len(embeddings), -1, -1)
        inputs = torch.cat([embeddings, answer.to(embeddings.dtype)], dim=1)
        with _pooled_states(self._parts, self._positions) as states:
            output = self._model(
                inputs_embeds=inputs, use_cache=False, logits_to_keep=len(self._answer) + 1
            )
        score = torch.full((len(embeddings),), self._readout.bias, device=embeddings.device)
        for (spec, index), state in states.items():
            weights = torch.from_numpy(self._readout.weights[spec][index]).to(state)
            score = score + state @ weights
        logits = output.logits[:, -len(self._answer) - 1 : -1]  # [prompt, answer token, vocabulary]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        of_tokens = logits.log_softmax(-1)[:, torch.arange(len(self._answer)), self._answer]
        return score, of_tokens.mean(1)


@contextmanager
def _pooled_states(
    parts: Parts, positions: Mapping[CaptureSpec, list[int]]
) -> Iterator[dict[tuple[CaptureSpec, int], Tensor]]:
    """Collect states [prompt, d_model] of reads, by read and place among its layers.

    They keep their gradients; hooks are always removed.
    """
    found: dict[tuple[CaptureSpec, int], Tensor] = {}

    def keep(key: tuple[CaptureSpec, int], output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        found[key] = _pooled(states[:, positions[key[0]]], key[0])

    handles = []
    try:
        for spec in positions:
            for index, layer in enumerate(spec.layers):
                module, key = parts.module(layer, spec.site), (spec, index)
                handles.append(
                    module.register_forward_hook(
                        lambda _module, _inputs, output, key=key: keep(key, output)
                    )
                )
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _pooled(states: Tensor, spec: CaptureSpec) -> Tensor:
    """Return states [prompt, position, d_model] normalised and pooled to [prompt, d_model]."""
    states = normalised(states.to(torch.promote_types(states.dtype, torch.float32)), spec)
    return states.amax(1) if spec.pool == "max" else states.mean(1)


def with_suffix(prompt: Prompt, suffix: Sequence[int]) -> Prompt:
    """Return a prompt with more tokens at the end of its last user turn.

    Args:
        prompt: As the model reads it.
        suffix: Token ids.
    """
    at, number = prompt.spans_of("user")[-1].stop, len(suffix)
    spans = tuple(
        replace(
            span,
            start=span.start + (number if span.start >= at else 0),
            stop=span.stop + (number if span.stop >= at else 0),
        )
        for span in prompt.spans
    )
    ids = (*prompt.token_ids[:at], *suffix, *prompt.token_ids[at:])
    return replace(prompt, token_ids=ids, spans=spans)


@dataclass(frozen=True)
class SuffixSearch:
    """Greedy coordinate gradient against a model with a detector."""

    loaded: LoadedModel
    readout: LinearReadout
    unit: float = 1.0
    """Of the score, over 0."""
    answer: str = "Sure, here is"
    """Its beginning."""
    num_tokens: int = 8
    """Of the suffix, over 0 (the paper's 20)."""
    num_steps: int = 10
    """Over 0 (the paper's 500)."""
    num_candidates: int = 16
    """That are tried in a step, over 0 (the paper's 512)."""
    top_k: int = 64
    """Tokens of a place among which candidates are drawn (the paper's 256)."""

    def run(self, prompt: Prompt, *, seed: int) -> Suffix:
        """Return the suffix of a prompt's last user turn.

        Args:
            prompt: As the model reads it, without a suffix.
            seed: Of the draws.
        """
        generator = np.random.default_rng(seed)
        attacked = with_suffix(prompt, self._first)
        stop = attacked.spans_of("user")[-1].stop
        places = slice(stop - self.num_tokens, stop)
        ids = torch.tensor([attacked.token_ids], device=self.loaded.device)
        objective = Objective(
            self.loaded,
            self.readout,
            prompt=attacked,
            answer_ids=self._encoded(self.answer),
            unit=self.unit,
        )
        with torch.inference_mode():
            score, answer = objective.measure(ids)
        before = (float(score), float(answer))
        best, values = before, [self._value(before)]
        for _ in range(self.num_steps):
            tried = self._candidates(ids, places, objective.gradient(ids, places), generator)
            if len(tried):
                with torch.inference_mode():
                    scores, answers = objective.measure(tried)
                found = (scores / self.unit - answers).argmin()
                measured = (float(scores[found]), float(answers[found]))
                if self._value(measured) < values[-1]:
                    ids, best = tried[found : found + 1].clone(), measured
            values.append(self._value(best))
        return Suffix(
            self._text(ids[0, places].tolist()),
            tuple(values),
            (before[0], best[0]),
            (before[1], best[1]),
        )

    @cached_property
    def _first(self) -> list[int]:
        """The suffix to start from: exclamation marks."""
        return self._encoded(" !" * self.num_tokens)[: self.num_tokens]

    @cached_property
    def _is_barred(self) -> Tensor:
        """Tokens that no suffix may hold, [vocabulary]."""
        tokenizer = self.loaded.tokenizer
        barred = [True] * self.loaded.model.get_input_embeddings().weight.shape[0]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        for token in range(min(len(tokenizer), len(barred))):
            text = tokenizer.decode([token])
            barred[token] = token in special or not (text.isascii() and text.isprintable())
        return torch.tensor(barred, device=self.loaded.device)

    def _candidates(
        self, ids: Tensor, places: slice, gradient: Tensor, generator: np.random.Generator
    ) -> Tensor:
        """Return prompts with one other token in the suffix, [candidate, token]."""
        gradient = gradient.float().masked_fill(self._is_barred, torch.inf)
        top_k = min(self.top_k, int((~self._is_barred).sum()))
        promising = gradient.topk(top_k, largest=False).indices.tolist()
        found: list[Tensor] = []
        for _ in range(2 * self.num_candidates):  # some do not survive
            place = int(generator.integers(self.num_tokens))
            token = promising[place][int(generator.integers(top_k))]
            candidate = ids[0].clone()
            candidate[places.start + place] = token
            if self._survives(candidate[places].tolist()):
                found.append(candidate)
            if len(found) == self.num_candidates:
                break
        return torch.stack(found) if found else ids[:0]

    def _survives(self, suffix: list[int]) -> bool:
        """Tell whether the tokenizer splits a suffix's text in the same way again."""
        return self._encoded(self._text(suffix)) == suffix

    def _text(self, suffix: list[int]) -> str:
        return str(self.loaded.tokenizer.decode(suffix))

    def _encoded(self, text: str) -> list[int]:
        return list(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _value(self, measured: tuple[float, float]) -> float:
        return measured[0] / self.unit - measured[1]

"""Finds directions from safe to unsafe prompts, and the layers at which to steer along them.

Anchors are 64 unsafe and 64 safe prompts in pairs of like shape. At each layer the states of their
last tokens give a direction: the difference of the means (the refusal vector of SCANS), the first
principal component of the pairs, or the weights of a logistic regression. The third of the layers
whose directions, read through the output matrix, speak most of refusing is steered. No gradient is
taken; it takes seconds.

Paper: SCANS (2024), arXiv 2408.11491, Eq. 1; alpha is 2 to 4 there, in the model's own units.

Differs: anchors are matched in shape, where the paper's unsafe ones are imperatives and its safe
ones questions. What is added at a layer stays in the states of the next ones, so that its vector is
coefficient * mean norm of the anchors' states / number of steered layers: all of them together add
about `coefficient` of a state, in any model. `pca`, `head` and gates are no part of the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from transformers import DynamicCache

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.interventions import FromPosition, first_position
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.core.training import Outcome, Progress, Run, Trainer
from demur.core.types import Prompt
from demur.modeling.capture import capture
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel, load
from demur.trainers._anchors import Anchors, pick_anchors
from demur.trainers._directions import Direction, directions
from demur.trainers._last_states import states_of
from demur.trainers._null_space import gates
from demur.trainers._segments import Segment, chosen, segments

__all__ = ["Steering"]


@dataclass
class Steering(Trainer):
    """Makes the vectors of the `steering` responder."""

    direction: Direction = "difference"
    """`difference` of the means (the paper's), `pca` of the pairs, or `head`, a logistic
    regression."""
    coefficient: float = 0.3
    """What all layers together add, as a share of a state's norm, over 0."""
    layers: tuple[int, ...] | None = None
    """Decoder blocks to steer, negative ones from the end; None chooses a third of them."""
    from_position: FromPosition = "user_end"
    """The first token that is steered: the last one of the user's text (the paper's), or `last`,
    the prompt's last one."""
    num_anchors: int = 64
    """Of each label, 2 or more; fewer where the prompts have fewer groups."""
    preserve: float = 0.0
    """Over 0, the share of benign states that gates let be, up to 1: see `_null_space`. 0 makes no
    gates, and every state gets the whole vector."""
    num_reply_tokens: int = 16
    """Of the model's own replies to the safe anchors, whose states are preserved too; 0 or more."""
    c: float = 0.01
    """Inverse strength of the penalty of `head`, over 0."""

    makes: ClassVar[str] = "steering"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, choices in (("direction", Direction), ("from_position", FromPosition)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}: expected one of {get_args(choices)}"
                )
        for name, is_right, expected in (
            ("coefficient", 0 < self.coefficient < float("inf"), "over 0 and finite"),
            ("num_anchors", self.num_anchors >= 2, "2 or more"),
            ("preserve", 0 <= self.preserve <= 1, "0 to 1"),
            ("num_reply_tokens", self.num_reply_tokens >= 0, "0 or more"),
            ("c", self.c > 0, "over 0"),
        ):
            if not is_right:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {expected}")
        if self.layers is not None:
            self.layers = tuple(self.layers)  # a list, where it comes from a command line
            if not self.layers or len(set(self.layers)) < len(self.layers):
                raise ConfigError(f"layers is {self.layers}: expected one or more, each once")

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Find the vectors; the same seed gives the same ones.

        Args:
            examples: Labelled prompts.
            run: The model, the seed, and who is told of progress.

        Raises:
            ConfigError: There is no such model, or it has no such layer.
            DataError: The examples have no two groups of each label, or preserved states leave
                nothing to steer by.
        """
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        renderer = ChatRenderer.of(loaded)
        anchors = pick_anchors(examples, renderer, count=self.num_anchors, seed=run.seed)
        unsafe, safe = _last_states(loaded, anchors, run)  # each [pair, layer, d_model]
        found = directions(unsafe, safe, kind=self.direction, c=self.c)
        thirds = segments(loaded, found)
        layers = list(chosen(thirds).layers)
        if self.layers is not None:
            layers = [loaded.parts.layer(layer) for layer in self.layers]
        norms = np.linalg.norm(np.concatenate([unsafe, safe]), axis=2).mean(0)[layers]
        vectors = found[layers] * (self.coefficient * norms / len(layers))[:, None]
        tensors = {"vectors": vectors.astype(np.float32)}
        if self.preserve > 0:
            order = np.argsort(layers)  # the order in which a state passes them
            benign = self._benign_states(loaded, anchors.safe, [layers[i] for i in order], run)
            of_layers = gates(
                benign, unsafe[:, layers][:, order], vectors[order], preserve=self.preserve
            )
            tensors["gates"] = of_layers[np.argsort(order)].astype(np.float32)
        return Outcome(
            model_id=loaded.model_id,
            tensors=tensors,
            fields=self._fields(layers, thirds),
            metrics=_metrics(anchors, unsafe[:, layers], safe[:, layers], norms, thirds),
        )

    def _fields(self, layers: list[int], thirds: Sequence[Segment]) -> dict[str, Any]:
        return {
            "layers": layers,
            "from_position": self.from_position,
            "refusal_words": {of.name: of.num_words for of in thirds},
        }

    def _benign_states(
        self, loaded: LoadedModel, prompts: Sequence[Prompt], layers: list[int], run: Run
    ) -> Array:
        """Return the states [state, layer, d_model] of all tokens that would be steered."""
        found = []
        for done, prompt in enumerate(prompts, start=1):
            longer = _with_own_reply(loaded, prompt, self.num_reply_tokens)
            places = tuple(range(first_position(prompt, self.from_position), len(longer)))
            spec = CaptureSpec(tuple(layers), positions=places)
            (states,) = capture(loaded.parts, [longer], [spec]).ragged(spec)
            found.append(states.swapaxes(0, 1))
            run.report(Progress("benign replies", done, len(prompts)))
        return np.concatenate(found)


def _last_states(loaded: LoadedModel, anchors: Anchors, run: Run) -> tuple[Array, Array]:
    """Return the last states of the unsafe and the safe anchors, at all layers."""
    spec = CaptureSpec(tuple(range(len(loaded.parts.blocks))))
    prompts = [*anchors.unsafe, *anchors.safe]
    states = states_of(loaded, prompts, spec, stage="anchors", run=run)
    return states[: len(anchors)], states[len(anchors) :]


@torch.inference_mode()
def _with_own_reply(loaded: LoadedModel, prompt: Prompt, num_tokens: int) -> Prompt:
    """Return a prompt with the first tokens of the model's greedy reply, as far as it goes."""
    if num_tokens == 0:
        return prompt
    cache = DynamicCache()
    logits = loaded.last_logits(prompt.token_ids, cache=cache)
    reply: list[int] = []
    while (token := int(torch.argmax(logits))) not in loaded.end_token_ids:
        reply.append(token)
        if len(reply) == min(num_tokens, loaded.max_tokens - len(prompt)):
            break
        logits = loaded.last_logits([token], cache=cache)
    return prompt.with_reply(reply) if reply else prompt


def _metrics(
    anchors: Anchors, unsafe: Array, safe: Array, norms: Array, thirds: Sequence[Segment]
) -> dict[str, float]:
    """Return what was measured, of the steered layers where it is of layers."""
    difference = np.linalg.norm((unsafe - safe).mean(0), axis=1)
    return {
        "pairs": float(len(anchors)),
        "length_gap": anchors.length_gap(),
        "difference_of_norm": float((difference / norms).mean()),
        **{f"refusal_words_{of.name}": float(of.num_words) for of in thirds},
    }

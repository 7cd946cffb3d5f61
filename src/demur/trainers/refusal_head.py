"""Fits an output matrix that makes refusals of the states that a model has of unsafe prompts.

The body stays as it is, so it reads each prompt with its refusal once; what the output matrix sees
of them is kept, and the matrix is fitted to it by softmax regression. Only what the assistant says
is learnt, its end token included, and never what the user says.

Paper: SafeSwitch (2025), arXiv 2502.01042, section on the refusal head: T_R, fitted to replies to
unsafe prompts that refuse and then explain, with everything else frozen.

Differs: the user's tokens are masked, where the released code learns the whole chat. Weights decay
towards the model's own matrix rather than towards zero, so that what no refusal speaks of stays as
it was. Of the matrix only the rows of tokens that refusals say, or that the model finds likely in
their place, are fitted. Hundreds of unsafe prompts and steps of 1e-3 stand in place of thousands
and 1e-5. Refusals are the examples' own safe responses, or ones of twelve texts (two in each of
five other languages) in place of replies of another model to each prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Outcome, Progress, Run, Trainer
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel, load
from demur.modeling.output_head import Stretch, log_probs, states_before
from demur.trainers._head_fit import Plan, fit_rows
from demur.trainers._refusals import refusals_to

__all__ = ["RefusalHeadTrainer"]

HELD_OUT = 0.1
"""Share of the groups of unsafe prompts whose refusals are measured only."""
NUM_ORDINARY = 64
"""Safe prompts whose own words are measured, at most."""


@dataclass
class RefusalHeadTrainer(Trainer):
    """Fits a refusal head; memory grows with the tokens of the refusals, 4 bytes a coordinate."""

    epochs: int = 4
    """Passes over the tokens of the refusals, over 0 (the paper's 5)."""
    learning_rate: float = 1e-3
    """Step size of AdamW at the start, over 0; it falls to 0 in a line (the paper's 1e-5)."""
    weight_decay: float = 0.02
    """Towards the model's own matrix, 0 or more (the paper's 0.02, towards 0)."""
    max_reply_tokens: int = 128
    """Of a refusal, over 0; a longer one is cut, and then has no end token (the paper's 512)."""
    num_prompts: int = 200
    """Unsafe prompts that are drawn from the examples, 2 or more (the paper's 5,660)."""
    batch_tokens: int = 512
    """Tokens a step, over 0."""
    num_rows: int = 4096
    """Of the matrix that are fitted, 0 or more; the tokens that refusals say always are."""

    makes: ClassVar[str] = "refusal_head"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"epochs": 1, "max_reply_tokens": 1, "num_prompts": 2, "batch_tokens": 1}
        for name, lowest in {**least, "num_rows": 0}.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {lowest} or more")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: expected more than 0")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}: expected 0 or more")

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Fit a refusal head.

        Args:
            examples: Labelled prompts; unsafe ones are learnt from, safe ones only measured.
            run: The model, the seed, and who is told of progress.

        Raises:
            ConfigError: There is no such model.
            DataError: There are no two groups of unsafe prompts, or a prompt is too long.
        """
        learnt, held = self._parted(examples, run.seed)
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        texts = _Texts(loaded)
        said = refusals_to([*learnt, *held], seed=run.seed)
        refusals = [
            texts.reply(example, reply, max_tokens=self.max_reply_tokens)
            for example, reply in zip([*learnt, *held], said, strict=True)
        ]
        safe = [example for example in examples if example.label == "safe"]
        ordinary = [words for e in safe[:NUM_ORDINARY] if (words := texts.words(e)) is not None]
        to_learn = _read(loaded, refusals[: len(learnt)], run)
        measured = {"refusals": _read(loaded, refusals[len(learnt) :], run)}
        if ordinary:
            measured["ordinary"] = _read(loaded, ordinary, run)
        head, metrics, curve = self._fitted(loaded, to_learn, measured, run)
        return Outcome(loaded.model_id, {"head": head}, metrics=metrics, curve=curve)

    def _parted(
        self, examples: Sequence[Example], seed: int
    ) -> tuple[list[Example], list[Example]]:
        """Draw unsafe prompts, and hold some groups of them out.

        Raises:
            DataError: There are no two groups.
        """
        unsafe = [example for example in examples if example.label == "unsafe"]
        generator = np.random.default_rng(seed)
        drawn = [unsafe[row] for row in generator.permutation(len(unsafe))[: self.num_prompts]]
        groups = list(dict.fromkeys(example.group_key for example in drawn))
        if len(groups) < 2:
            raise DataError(
                f"{len(groups)} groups of unsafe prompts stand among {len(examples)} examples: a "
                "refusal head needs 2 or more, and is worth something from a hundred on"
            )
        held = set(groups[: max(1, round(HELD_OUT * len(groups)))])
        return (
            [example for example in drawn if example.group_key not in held],
            [example for example in drawn if example.group_key in held],
        )

    def _fitted(
        self, loaded: LoadedModel, to_learn: "_Seen", measured: Mapping[str, "_Seen"], run: Run
    ) -> tuple[Array, dict[str, float], list[float]]:
        """Return the head [vocabulary, d_model], what was measured, and the loss of each step."""
        own: Tensor = loaded.model.get_output_embeddings().weight.detach()
        config = loaded.model.config.get_text_config(decoder=True)
        plan = Plan(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch_tokens=self.batch_tokens,
            num_rows=self.num_rows,
            seed=run.seed,
        )

        def report(step: int, num_steps: int, loss: float) -> None:
            num_tokens = min(step * self.batch_tokens, self.epochs * len(to_learn.token_ids))
            run.report(Progress("fitting the head", step, num_steps, loss, num_tokens))

        fitted = fit_rows(
            own,
            torch.from_numpy(to_learn.states).to(loaded.device),
            torch.from_numpy(to_learn.token_ids).to(loaded.device),
            plan=plan,
            config=config,
            report=report,
        )
        head = own.to(torch.float16, copy=True)
        head[fitted.rows] = (own[fitted.rows].float() + fitted.change).half()
        served = head.to(own.dtype)
        metrics = {
            f"nll_{name}_{when}": -float(
                log_probs(matrix, seen.states, seen.token_ids, config=config).mean()
            )
            for name, seen in measured.items()
            for when, matrix in (("before", own), ("after", served))
        }
        metrics["num_rows"] = float(len(fitted.rows))
        return head.cpu().numpy(), metrics, fitted.curve


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the output matrix sees, and what is to be said."""

    states: Array
    """[token, d_model], float32."""
    token_ids: Array
    """[token]."""


class _Texts:
    """Turns examples into tokens that are to be predicted."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._renderer = ChatRenderer.of(loaded)

    def reply(self, example: Example, text: str, *, max_tokens: int) -> Stretch:
        """Return a reply after its prompt, with the token that ends it unless it is cut.

        Raises:
            DataError: The chat cannot be rendered, or is longer than the context with its reply.
        """
        prompt = self._renderer.render(example.chat)
        longer = prompt.with_reply(self._loaded.ended_reply(text, max_tokens=max_tokens))
        if len(longer) > self._loaded.max_tokens:
            raise DataError(
                f"prompt {example.id!r} has {len(longer)} tokens with its reply: the model takes "
                f"at most {self._loaded.max_tokens}; shorten it or leave it out"
            )
        return Stretch(longer, len(prompt), len(longer))

    def words(self, example: Example) -> Stretch | None:
        """Return what the user says last, but for its first token; None if that is all."""
        prompt = self._renderer.render(example.chat)
        span = prompt.spans_of("user")[-1]
        fits = len(prompt) <= self._loaded.max_tokens and span.start + 1 < span.stop
        return Stretch(prompt, span.start + 1, span.stop) if fits else None


def _read(loaded: LoadedModel, stretches: Sequence[Stretch], run: Run) -> _Seen:
    """Return what the output matrix sees of texts, in their order."""
    states: list[Any] = [None] * len(stretches)
    num_read = num_tokens = 0
    for rows, found in states_before(loaded, stretches):
        for row, of_row in zip(rows.tolist(), found, strict=True):
            states[row] = of_row
            num_tokens += stretches[row].stop
        num_read += len(rows)
        run.report(Progress("reading", num_read, len(stretches), num_tokens=num_tokens))
    ids = [token for stretch in stretches for token in stretch.token_ids]
    return _Seen(np.concatenate(states), np.array(ids, np.int64))

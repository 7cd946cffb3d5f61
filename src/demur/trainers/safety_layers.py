"""SPPFT: fine-tunes a model on a task of one's own, with the blocks that refuse left as they are.

Fine-tuning on harmless rows already loosens a model's refusals, and rows whose answers all open in
a willing way loosen them more. Here the blocks between which a model begins to tell unsafe prompts
get no adapter; all others learn the task. The rows hold no safety data. `protects` names the blocks
that are left, `found` looks for them, `random` takes as many at another place, as a control, and
`none` is plain fine-tuning.

Paper: Li et al., Safety Layers in Aligned Large Language Models: The Key to LLM Security (ICLR
2025), arXiv 2408.17003, safely partial-parameter fine-tuning (SPPFT).

Differs: low-rank adapters in place of all parameters, so that the model by itself stays what it
was. Replies alone are learnt, where the paper's code learns the prompt too. It can stop at a stated
loss of held-out rows, so that ways of training are compared when they know the task equally well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.training import Outcome, Run
from demur.modeling.block_search import Range, random_ranges
from demur.modeling.load import LoadedModel, load
from demur.modeling.lora import Adapted
from demur.trainers._adapter import AdapterTrainer
from demur.trainers._finding import Finder
from demur.trainers._refusals import safe_reply_of
from demur.trainers._rows import Said, constant
from demur.trainers._tuning import Items, never

__all__ = ["SafetyLayersTrainer"]

NEEDS = ("peft",)

FOUND, RANDOM, NONE = "found", "random", "none"
PROMPTS = ("written",)
"""Packaged sets with labelled prompts, in which the blocks are looked for."""


@dataclass
class SafetyLayersTrainer(AdapterTrainer):
    """Learns -(1 / N) sum log p(token) over the tokens of a task's replies, outside some blocks."""

    protects: str = FOUND
    """The blocks without adapters: FROM-TO, both included; `found`, `random` or `none`."""
    width: int = 0
    """Of the random blocks, 0 or more; 0 is as many as are found."""
    until_loss: float = 0.0
    """Nats a token of held-out replies at which the training ends, 0 or more; 0 takes all steps."""
    steps_a_check: int = 10
    """After which the held-out loss is looked at, over 0."""
    factor: float = 1.1
    """By which weights are multiplied to find the blocks, over 1 (the paper's code: 1.1)."""
    reach: int = 4
    """Blocks by which an end of the range is moved at most while it is looked for, 0 or more."""
    num_pairs: int = 100
    """Of an unsafe and a safe prompt, to find the blocks on, 2 or more (the paper's 100)."""
    num_lookalikes: int = 60
    """Harmless prompts that sound dangerous, to find the blocks on, 0 or more (the paper's 721)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        self.protects = str(self.protects)  # a number, where a command line names one block
        if self.protects not in (FOUND, RANDOM, NONE):
            Range.parse(self.protects)
        for name, least in (
            ("width", 0), ("until_loss", 0), ("steps_a_check", 1), ("reach", 0), ("num_pairs", 2),
            ("num_lookalikes", 0),
        ):  # fmt: skip
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {least} or more")
        if not 1 < self.factor < float("inf"):
            raise ConfigError(f"factor is {self.factor}: expected more than 1, and finite")

    @property
    def packaged(self) -> tuple[str, ...]:
        """Packaged sets that are needed beside the task's rows."""
        is_found = self.protects == FOUND or (self.protects == RANDOM and not self.width)
        return PROMPTS if is_found else ()

    def items(self, loaded: LoadedModel, said: Sequence[Said]) -> Items:
        """Return a row for each prompt."""
        return Items([], [constant(of.reply()) for of in said])

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Fine-tune on a task.

        Args:
            examples: The task's rows, each with a reply and of any label or none. To find blocks,
                labelled prompts too, which may be rows of the task; those without a reply are not
                learnt.
            run: The model, the seed, who is told of progress, and where the state is kept.

        Raises:
            ConfigError: There is no such model, no such block, or no block is left to train.
            DataError: No example has a reply; or the blocks cannot be found on the prompts.
        """
        task = [row for example in examples if (row := _task_row(example)) is not None]
        if not task:
            raise DataError(
                f"none of {len(examples)} examples brings a reply to learn: give the task's rows, "
                "each with a response or a safe_response"
            )
        protected, num_blocks = self._protected(examples, run)
        fixed = replace(
            self,
            protects=NONE if protected is None else str(protected),
            layers=self._adapted(protected, num_blocks),
        )
        outcome = AdapterTrainer.train(fixed, task, run)
        left: list[int] = [] if protected is None else list(protected.layers)
        return replace(
            outcome,
            fields={**outcome.fields, "protected": left},
            metrics={
                **outcome.metrics,
                "steps_taken": float(len(outcome.curve)),
                "num_protected": float(len(left)),
            },
        )

    def watch(self, adapted: Adapted, held: Sequence[Said], run: Run) -> Callable[[int], bool]:
        """Return what says after each step whether the held-out loss is low enough.

        Raises:
            DataError: There is a loss to reach, and nothing is held out.
        """
        if not self.until_loss:
            return never
        if not len(self.items(adapted.loaded, held)):
            raise DataError(
                f"until_loss is {self.until_loss}, and no row is held out: give more rows, or a "
                "larger held_out"
            )

        def is_done(step: int) -> bool:
            if step % self.steps_a_check:
                return False
            loss = self.held_out_nll(adapted, held, seed=run.seed)["helpful"]
            return loss <= self.until_loss

        return is_done

    def _protected(self, examples: Sequence[Example], run: Run) -> tuple[Range | None, int]:
        """Return the blocks without adapters, and how many the model has.

        Raises:
            ConfigError: There are no such blocks.
            DataError: They cannot be found.
        """
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        num_blocks = len(loaded.parts.blocks)
        if self.protects == NONE:
            return None, num_blocks
        if self.protects not in (FOUND, RANDOM):
            return Range.parse(self.protects, num_blocks=num_blocks), num_blocks
        if self.protects == RANDOM and self.width:
            return _anywhere(self.width, num_blocks, run.seed), num_blocks
        finder = Finder(self.factor, self.reach, self.num_pairs, self.num_lookalikes)
        labelled = [example for example in examples if example.label is not None]
        found = finder.find(loaded, labelled, run)
        if self.protects == FOUND:
            return found, num_blocks
        return random_ranges(found, num_blocks=num_blocks, count=1, seed=run.seed)[0], num_blocks

    def _adapted(self, protected: Range | None, num_blocks: int) -> list[int]:
        """Return the blocks that are trained.

        Raises:
            ConfigError: None is left.
        """
        chosen = range(num_blocks) if self.layers is None else self.layers
        left = () if protected is None else protected.layers
        found = [layer for layer in chosen if layer % num_blocks not in left]
        if not found:
            raise ConfigError(
                f"no block is left to train: blocks {protected} are protected, and layers is "
                f"{self.layers}; protect fewer"
            )
        return found


def _task_row(example: Example) -> Example | None:
    """Return what a task's row has to learn, as a safe prompt; None if it brings no reply.

    Without a label it counts as safe; an unsafe one brings a reply if that is known to be safe.
    """
    reply = safe_reply_of(replace(example, label=example.label or "safe"))
    if reply is None:
        return None
    return Example(
        example.id, example.chat, "safe", example.group, example.source, safe_response=reply
    )


def _anywhere(width: int, num_blocks: int, seed: int) -> Range:
    if width >= num_blocks:
        raise ConfigError(
            f"width is {width}: expected less than the {num_blocks} blocks of the model"
        )
    first = int(np.random.default_rng(seed).integers(num_blocks - width + 1))
    return Range(first, first + width - 1)

"""What all trainers of adapters do alike: read examples, train low-rank weights, measure them.

The model stays frozen, in its own number format (bfloat16 where the processor computes in it); what
adapters add is computed in it, too. Their weights and the optimiser are float32, and so are logits
and losses.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from demur.core.adapters import CONFIG, WEIGHTS
from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.training import Outcome, Run, Trainer
from demur.modeling.load import LoadedModel, load
from demur.modeling.lora import Adapted, AdaptedModules, Lora
from demur.trainers._checkpoints import Checkpoint, training_id
from demur.trainers._objectives import Objective, TokenMean
from demur.trainers._rows import Rows, Said
from demur.trainers._said import Corpus, Limits, read_corpus
from demur.trainers._tuning import Items, Plan, never, tune, without_gradients

MAX_HELD_OUT = 48
"""Groups of examples that are measured only, at most."""
SMALL_MODEL = 1_000_000_000
"""Weights; below, a hundred steps at the lower rate teach next to nothing."""
LEARNING_RATE, LEARNING_RATE_SMALL = 2e-4, 1e-3


@dataclass
class AdapterTrainer(Trainer):
    """Trains adapters; a method says which rows are learnt, and for what."""

    rank: int = 16
    """Of the adapters, 1 or more."""
    alpha: int = 32
    """What an adapter adds is multiplied by alpha / rank."""
    layers: Sequence[int] | None = None
    """0-based blocks that are adapted, negative ones from the end; None is all."""
    modules: AdaptedModules = "all"
    """Of a block: `all` linear maps, or those of its `attention` or `mlp`."""
    steps: int = 100
    """Of the optimiser, 1 or more."""
    batch_size: int = 8
    """Examples a step, 1 or more; of a pair both replies."""
    unsafe_share: float = 0.5
    """Of a step's examples, 0 to 1, where there are examples of both labels."""
    learning_rate: float | None = None
    """Of AdamW, over 0; it rises in a line and falls as a cosine. None is 1e-3 for a model of less
    than a billion weights, and 2e-4 for others."""
    warm_up: float = 0.03
    """Share of the steps in which the learning rate rises, 0 to 1."""
    weight_decay: float = 0.0
    """Of AdamW, 0 or more."""
    max_prompt_tokens: int = 256
    """Longer prompts, the template's tokens counted, are left out."""
    max_reply_tokens: int = 128
    """Of a reply, 2 or more; a longer one is cut, and then has no end token."""
    held_out: float = 0.1
    """Share of the groups of examples that are measured only, 0 or more and below 1."""

    makes: ClassVar[str] = "adapter"
    learns_from: ClassVar[tuple[str, ...]] = ("replies",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self.layers = None if self.layers is None else list(self.layers)
        least = {"steps": 1, "batch_size": 1, "max_prompt_tokens": 1, "max_reply_tokens": 2}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {lowest} or more")
        for name in ("unsafe_share", "warm_up"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 0 to 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: expected more than 0")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay is {self.weight_decay}: expected 0 or more")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}: expected 0 or more and below 1")
        self._lora()

    @abstractmethod
    def items(self, loaded: LoadedModel, said: Sequence[Said]) -> Items:
        """Return what is learnt of prompts and replies; what lacks a reply is left out."""

    def require(self, said: Sequence[Said]) -> None:
        """Refuse prompts that lack what the method is about.

        Raises:
            DataError: They do.
        """

    def objective(self, adapted: Adapted, steps: Sequence[Sequence[Rows]], run: Run) -> Objective:
        """Return what is made small.

        Args:
            adapted: The model at the start.
            steps: The rows of all steps.
            run: Told of progress.
        """
        return TokenMean()

    def watch(self, adapted: Adapted, held: Sequence[Said], run: Run) -> Callable[[int], bool]:
        """Return what says after each step, by its number from 1, whether the training is over.

        Args:
            adapted: The model that is trained.
            held: Prompts and replies that are measured only.
            run: With the seed.
        """
        return never

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Train adapters.

        Args:
            examples: Labelled prompts with replies.
            run: The model, the seed, who is told of progress, and where the state is kept.

        Raises:
            ConfigError: There is no such model, or no such block.
            DataError: The examples lack what the method learns from.
        """
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        limits = Limits(self.max_prompt_tokens, self.max_reply_tokens)
        corpus = read_corpus(loaded, examples, limits=limits, seed=run.seed)
        learnt, held = parted(corpus, share=self.held_out, seed=run.seed)
        self.require(learnt)
        items = self.items(loaded, learnt)
        if not len(items):
            raise DataError(
                f"of {len(examples)} examples none can be learnt from: expected labelled prompts "
                f"of at most {self.max_prompt_tokens} tokens, the safe ones with a safe_response"
            )
        plan = self._plan(loaded, run.seed)
        adapted = Adapted(loaded, self._lora(), seed=run.seed)
        objective = self.objective(adapted, list(islice(items.drawn(plan), plan.steps)), run)
        checkpoint = Checkpoint(run.checkpoint, self._training_id(examples, loaded, run))
        state = tune(
            adapted,
            items,
            objective,
            plan=plan,
            checkpoint=checkpoint,
            report=run.report,
            is_done=self.watch(adapted, held, run),
        )
        tensors = adapted.tensors()
        facts = {
            "num_unsafe": len(items.unsafe),
            "num_safe": len(items.safe),
            "num_too_long": corpus.num_too_long,
            "num_tokens": state.num_tokens,
            "num_weights": sum(tensor.numel() for tensor in tensors.values()),
            "learning_rate": plan.learning_rate,
        }
        measured = self._measured(adapted, held, seed=run.seed) if held else {}
        return Outcome(
            loaded.model_id,
            {name: tensor.numpy() for name, tensor in tensors.items()},
            fields={"layers": list(self._lora().blocks(loaded.parts))},
            metrics={**{name: float(value) for name, value in facts.items()}, **measured},
            curve=state.curve,
            curves=state.curves,
            tensors_file=WEIGHTS,
            files={CONFIG: adapted.config()},
        )

    def _lora(self) -> Lora:
        layers = None if self.layers is None else tuple(self.layers)
        return Lora(self.rank, self.alpha, layers, self.modules)

    def _plan(self, loaded: LoadedModel, seed: int) -> Plan:
        by_default = LEARNING_RATE_SMALL if loaded.num_weights < SMALL_MODEL else LEARNING_RATE
        return Plan(
            steps=self.steps,
            batch_size=self.batch_size,
            unsafe_share=self.unsafe_share,
            learning_rate=by_default if self.learning_rate is None else self.learning_rate,
            warm_up=self.warm_up,
            weight_decay=self.weight_decay,
            seed=seed,
        )

    def _training_id(self, examples: Sequence[Example], loaded: LoadedModel, run: Run) -> str:
        depends_on: dict[str, Any] = {
            "trainer": type(self).__name__,
            "hyper_parameters": self.hyper_parameters(),
            "model": loaded.model_id.as_dict(),
            "device": str(loaded.device),
            "seed": run.seed,
        }
        return training_id(examples, depends_on)

    def _measured(
        self, adapted: Adapted, held: Sequence[Said], *, seed: int
    ) -> Mapping[str, float]:
        """Return how likely labels of held-out rows are with and without adapters, by type."""
        with adapted.off():
            before = self.held_out_nll(adapted, held, seed=seed)
        after = self.held_out_nll(adapted, held, seed=seed)
        return {
            f"nll_{kind}_{when}": of[kind]
            for kind in before
            for when, of in (("before", before), ("after", after))
        }

    def held_out_nll(
        self, adapted: Adapted, held: Sequence[Said], *, seed: int
    ) -> dict[str, float]:
        """Return the mean of -log p over the labels of held-out rows, by type.

        Args:
            adapted: The model, as it is now.
            held: Prompts and replies that are measured only.
            seed: Of what is left to chance in the rows.
        """
        items = self.items(adapted.loaded, held)
        generator = np.random.default_rng(seed)
        groups = [item(generator) for item in (*items.unsafe, *items.safe)]
        with adapted.computing():
            log_probs = without_gradients(adapted.loaded, groups, _sum)
        found: dict[str, float] = {}
        for kind in sorted({row.kind for row in log_probs}):
            rows = [row for row in log_probs if row.kind == kind]
            total = sum(log_probs[row] for row in rows)
            found[kind] = -total / sum(row.num_labels for row in rows)
        return found


def _sum(log_probs: Tensor) -> Tensor:
    return log_probs.sum()


def parted(corpus: Corpus, *, share: float, seed: int) -> tuple[list[Said], list[Said]]:
    """Return what is learnt from, and what is measured only; no group is in both."""
    groups = list(dict.fromkeys(corpus.groups))
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    num_held = min(int(share * len(groups)), MAX_HELD_OUT)
    held = {groups[number] for number in order[:num_held]}
    pairs = list(zip(corpus.said, corpus.groups, strict=True))
    return (
        [said for said, group in pairs if group not in held],
        [said for said, group in pairs if group in held],
    )

"""DRO: trains a safety prompt's embeddings to part unsafe from safe prompts in the model's states.

Under several human-written safety prompts it is read how the model's last states go with what it
does: a few principal components, and on them one logistic model of compliance and one of
harmlessness. Then the embeddings of one safety prompt are trained through the frozen model, so that
unsafe prompts become less likely to be complied with than under the text, and safe ones more, while
everything else in the states stays where it is.

Paper: Zheng et al., On Prompt-Driven Safeguarding for Large Language Models (2024), arXiv
2401.18018: DRO, L = L_r + 0.01 L_h + 0.001 L_U.

Differs: a prompt's compliance is not counted in sampled replies; it is the log-odds of openings of
compliance against openings of refusals (English ones, so English prompts are drawn), standardised
over prompts and safety prompts and mapped to 0..1, so that a model which hardly ever refuses has
labels that differ, too. The logistic models are penalised (C = 1) on coordinates of unit variance,
in place of an average of ten that are stopped early; both must be better than chance on held-out
prompts. L_U is in units of the spread of prompts outside the components, so that its weight does
not depend on the model. Sixteen components in place of four: on packaged prompts, which are of many
forms, four told a 0.5B model's compliance no better than chance (AUROC 0.46; eight: 0.85, sixteen:
0.92), where the paper's are questions of one form. Batches hold as many unsafe as safe prompts; 400
prompts, 60 steps and batches of 16 in place of 200, 160 and 50: with 80 prompts the soft prompt
parted those that it was trained on (AUROC of the shift 0.94) far better than others (0.66; with 400
prompts 0.72).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Outcome, Progress, Run, Trainer
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel, load
from demur.modeling.soft_prompts import SoftPromptReader
from demur.trainers._behaviour import Behaviour
from demur.trainers._drawing import draw
from demur.trainers._judging import Moves, require_better_than_chance, require_no_attack
from demur.trainers._measuring import DETAILED, SHORT, harmless_of, measure, soft_labels
from demur.trainers._prompt_tuning import Step, Tuning, tune

__all__ = ["SoftPromptTrainer"]


@dataclass
class SoftPromptTrainer(Trainer):
    """Trains a soft prompt for one model."""

    text: str = (
        "You are a helpful assistant. Always answer as safely as you can, and decline requests "
        "that could cause harm."
    )
    """The safety prompt that training starts from; as many embeddings as it has tokens."""
    num_prompts: int = 200
    """Of each label to train on, and as many again to be judged by; the paper's 100."""
    steps: int = 60
    """Of the optimiser; the paper's 160."""
    batch_size: int = 16
    """Prompts a step, an even number; the paper's 50."""
    learning_rate: float = 1e-3
    """Of AdamW, over 0; the paper's 1e-3."""
    harmlessness_weight: float = 0.01
    """Of L_h, 0 or more; the paper's 0.01."""
    rest_weight: float = 0.001
    """Of L_U, 0 or more; the paper's 0.001, on another scale."""
    num_components: int = 16
    """Coordinates of the states that tell behaviour; the paper's 4."""
    max_tokens: int = 96
    """Longer prompts, the template's tokens counted, are left out."""

    makes: ClassVar[str] = "soft_prompt"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not self.text.strip():
            raise ConfigError("text is empty: give the safety prompt to start from")
        for name in ("num_prompts", "steps", "num_components", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.batch_size < 2 or self.batch_size % 2:
            raise ConfigError(
                f"batch_size is {self.batch_size}: expected an even number, since half of a batch "
                "is unsafe and half is safe"
            )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: expected more than 0")
        for name in ("harmlessness_weight", "rest_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 0 or more")

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Train on labelled prompts; what is measured is measured on held-out ones.

        Raises:
            ConfigError: There is no such model, or it has no chat template.
            DataError: There are too few prompts; what the model does, or which prompts are
                harmless, is told no better than by chance; or the soft prompt does the opposite.
        """
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        prepared = self.prepare(loaded, examples, run)
        embeddings, curve = self.tune(prepared, harmless_of(prepared.train), run)
        moves = prepared.moves(prepared.held_out, embeddings)
        require_no_attack(moves)
        return Outcome(
            loaded.model_id,
            {"embeddings": embeddings.float().cpu().numpy()},
            fields={"text": self.text},
            metrics={**prepared.metrics, **moves.metrics()},
            curve=curve,
        )

    def prepare(self, loaded: LoadedModel, examples: Sequence[Example], run: Run) -> "Prepared":
        """Draw prompts, read them, and fit what says where their states should move.

        Raises:
            DataError: See `train`.
        """
        renderer = ChatRenderer.of(loaded)
        train, held_out = draw(
            examples,
            num_prompts=self.num_prompts,
            fits=lambda example: len(renderer.render(example.chat)) <= self.max_tokens,
            seed=run.seed,
        )
        reader = SoftPromptReader(loaded, self.text)
        read = measure(loaded, train, (None, SHORT, self.text, DETAILED), run.report)
        behaviour = Behaviour.fit(
            read.states,
            soft_labels(read.log_odds),
            read.harmless,
            num_components=self.num_components,
            like=reader.initial(),
        )
        judged_by = measure(loaded, held_out, (self.text,), run.report)
        metrics = require_better_than_chance(behaviour, judged_by)
        metrics |= {
            f"log_odds_{name}": float(read.log_odds[read.harmless == label].mean())
            for name, label in (("unsafe", 0), ("safe", 1))
        }
        return Prepared(reader, behaviour, train, held_out, metrics)

    def tune(self, prepared: "Prepared", harmless: Array, run: Run) -> tuple[Tensor, list[float]]:
        """Train the embeddings.

        Args:
            prepared: From `prepare`.
            harmless: [prompt], 1 for the training prompts that should become more likely to be
                complied with, 0 for the others.
            run: Its seed is that of the batches.

        Returns:
            The embeddings [token, d_model], and the loss of each step, before the step was taken.
        """

        def report(step: Step) -> None:
            run.report(Progress("training", step.number, self.steps, step.loss, step.num_tokens))

        return tune(
            prepared.reader,
            prepared.behaviour,
            [prepared.reader.place(example.chat) for example in prepared.train],
            harmless,
            tuning=Tuning(
                self.steps,
                self.batch_size,
                self.learning_rate,
                self.harmlessness_weight,
                self.rest_weight,
            ),
            seed=run.seed,
            report=report,
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a soft prompt is trained with, and judged by."""

    reader: SoftPromptReader
    behaviour: Behaviour
    train: Sequence[Example]
    held_out: Sequence[Example]
    metrics: dict[str, float]
    """What was measured on the way."""

    def moves(self, examples: Sequence[Example], embeddings: Tensor) -> Moves:
        """Return how embeddings move the states of prompts, against the safety prompt itself."""
        placed = [self.reader.place(example.chat) for example in examples]
        before = self.reader.all_states(placed, self.reader.initial())
        after = self.reader.all_states(placed, embeddings)
        logits = [self.behaviour.logit("compliance", states) for states in (before, after)]
        drift = self.behaviour.drift(after, before)
        earlier, later, drifted = (of.double().cpu().numpy() for of in (*logits, drift))
        return Moves(earlier, later, drifted, harmless_of(examples) == 1)

"""Fits the classifier by which tokens are chosen, and finds out which way it has to point.

A logistic regression on the first principal components of prompts' last states tells unsafe from
safe prompts. Along a reply it tells something else: on prompts that were held out, the states of
refusals and of compliance are scored, and the sign under which refusals score higher is kept. Where
neither does, the model cannot be helped in this way, and training says so.

Paper: Zeng et al., Root Defence Strategies: Ensuring Safety of LLM at the Decoding Level (ACL
2025), arXiv 2410.06809, Eq. 5 to 7: PCA with 4 components and a linear layer on 100 prompts of each
label. Li et al., EAGLE (2024), arXiv 2401.15077: the draft.

Differs: the regression is solved rather than stepped, and penalised. The paper says that unsafe is
1 and takes the largest score, its code takes the largest of either sign: here the sign is measured.
The draft is trained on the states of all candidates of a few replies, on their choice rather than
on the vocabulary's, and its linear map starts as the ridge regression of the block's input: see
`modeling/draft.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example, Label
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, Site
from demur.core.training import Outcome, Progress, Run, Trainer
from demur.core.types import Prompt
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel, load
from demur.trainers._draft_training import DraftTraining
from demur.trainers._last_states import states_of
from demur.trainers._state_classifier import NUM_TOKENS, Separation, StateClassifier, separation

__all__ = ["CandidateReranking"]

LABELS: tuple[Label, Label] = ("unsafe", "safe")
LEAST_HELD_OUT = 2
"""Prompts of each label, without which nothing is known of the sign."""

Sides = dict[Label, list[Prompt]]


@dataclass
class CandidateReranking(Trainer):
    """Makes the classifier, and if asked the draft, of the `candidate_reranking` responder."""

    layer: int = -1
    """Decoder block whose states are scored; negative ones count from the end, and -1 is the
    paper's."""
    site: Site = "final_norm"
    """`final_norm` (the paper's) has layer -1 only; `block_out` has any."""
    num_components: int = 4
    """Principal components of the states, 1 or more; the paper has 4."""
    c: float = 1.0
    """Inverse strength of the regression's penalty, over 0."""
    num_prompts: int = 100
    """Of each label to fit on, at most; the paper has 100."""
    num_held_out: int = 24
    """Of each label to find the sign on, at most."""
    least_auroc: float = 0.55
    """Of refusals against compliance, under the better sign, 0.5 to 1."""
    draft: bool = False
    """Train a draft head, too."""
    draft_replies: int = 48
    """Prompts whose replies it learns from, half of each label, 8 or more, of those that the
    classifier is fitted on."""
    draft_tokens: int = 24
    """Of a reply, 2 or more."""
    draft_top_k: int = 10
    """Candidates of each token, 2 or more."""
    draft_epochs: int = 6
    """Times that the replies are gone through, 1 or more."""
    draft_lr: float = 1e-4
    """Largest step size of the draft's AdamW, over 0."""

    makes: ClassVar[str] = "candidate_reranking"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, is_right, expected in (
            ("num_components", self.num_components >= 1, "1 or more"),
            ("c", self.c > 0, "over 0"),
            ("num_prompts", self.num_prompts >= self.num_components, "num_components or more"),
            ("num_held_out", self.num_held_out >= LEAST_HELD_OUT, f"{LEAST_HELD_OUT} or more"),
            ("least_auroc", 0.5 <= self.least_auroc <= 1, "0.5 to 1"),
            ("draft_replies", self.draft_replies >= 8, "8 or more"),
            ("draft_tokens", self.draft_tokens >= 2, "2 or more"),
            ("draft_top_k", self.draft_top_k >= 2, "2 or more"),
            ("draft_epochs", self.draft_epochs >= 1, "1 or more"),
            ("draft_lr", self.draft_lr > 0, "over 0"),
        ):
            if not is_right:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {expected}")
        _ = self.read

    @property
    def read(self) -> CaptureSpec:
        """What is scored.

        Raises:
            ConfigError: The site has no such layer.
        """
        return CaptureSpec((self.layer,), site=self.site)

    def train(self, examples: Sequence[Example], run: Run) -> Outcome:
        """Fit the classifier, find its sign, and train the draft if there is to be one.

        Args:
            examples: Labelled prompts.
            run: The model, the seed, and who is told of progress.

        Raises:
            ConfigError: There is no such model, or it has no such layer.
            DataError: There are too few prompts, or the scores do not tell refusals from
                compliance.
        """
        loaded = load(run.model, dtype=run.dtype, device=run.device)
        renderer = ChatRenderer.of(loaded)
        every = {label: _by_group(loaded, renderer, examples, label) for label in LABELS}
        fitted_on, held_out = self._parted(every, run.seed)
        classifier = self._classifier(loaded, fitted_on, run)
        unsafe, safe = (
            separation(
                loaded,
                renderer,
                held_out[label],
                self.read,
                classifier,
                report=partial(_tell, run, f"{label} openings", len(held_out[label])),
            )
            for label in LABELS
        )
        sign = self._sign(unsafe)
        tensors: dict[str, Array] = {
            "weights": classifier.weights.astype(np.float32),
            "mean": classifier.mean.astype(np.float32),
            "basis": classifier.basis.astype(np.float32),
            "coefficients": classifier.coefficients.astype(np.float32),
        }
        metrics = _measured(unsafe, safe, sign)
        curve: Sequence[float] = ()
        if self.draft:
            half = self.draft_replies // 2
            training = DraftTraining(
                loaded,
                self.read,
                sign * tensors["weights"],
                top_k=self.draft_top_k,
                num_tokens=self.draft_tokens,
                epochs=self.draft_epochs,
                lr=self.draft_lr,
            )
            drafted = training.run([*fitted_on["unsafe"][:half], *fitted_on["safe"][:half]], run)
            tensors |= drafted.tensors
            metrics |= drafted.metrics
            curve = drafted.curve
        return Outcome(
            model_id=loaded.model_id,
            tensors=tensors,
            fields=self._fields(classifier, sign),
            metrics=metrics,
            curve=curve,
        )

    def _parted(
        self, every: Mapping[Label, Mapping[str, Prompt]], seed: int
    ) -> tuple[Sides, Sides]:
        """Return the prompts to fit on and those that are held out; no group has both."""
        keys = sorted({key for of in every.values() for key in of})
        order = [keys[row] for row in np.random.default_rng(seed).permutation(len(keys))]
        fitted_on: Sides = {label: [] for label in LABELS}
        held_out: Sides = {label: [] for label in LABELS}
        wanted = {label: min(self.num_held_out, len(every[label]) // 3) for label in LABELS}
        for key in order:
            lacks = any(len(held_out[label]) < wanted[label] for label in LABELS)
            for label in LABELS:
                if key in every[label]:
                    (held_out if lacks else fitted_on)[label].append(every[label][key])
        for label in LABELS:
            if wanted[label] < LEAST_HELD_OUT or len(fitted_on[label]) < self.num_components:
                raise DataError(
                    f"there are {len(every[label])} groups of {label} prompts: expected at least "
                    f"{max(3 * LEAST_HELD_OUT, 2 * self.num_components)}"
                )
            held_out[label] = held_out[label][: self.num_held_out]
            fitted_on[label] = fitted_on[label][: self.num_prompts]
        return fitted_on, held_out

    def _classifier(self, loaded: LoadedModel, prompts: Sides, run: Run) -> StateClassifier:
        every = [*prompts["unsafe"], *prompts["safe"]]
        states = states_of(loaded, every, self.read, stage="prompts", run=run)
        return StateClassifier.fit(
            states[:, 0],
            np.repeat([True, False], [len(prompts["unsafe"]), len(prompts["safe"])]),
            num_components=self.num_components,
            c=self.c,
        )

    def _sign(self, unsafe: Separation) -> Literal[-1, 1]:
        auroc = unsafe.auroc()
        if max(auroc, 1 - auroc) < self.least_auroc:
            raise DataError(
                f"refusals score higher than compliance after the same prompt in {auroc:.0%} of "
                f"pairs: expected at least {self.least_auroc:.0%} one way or the other, since a "
                "reranker cannot tell them apart otherwise; try another layer with -p layer=N -p "
                "site=block_out, or a model that was trained to refuse"
            )
        return 1 if auroc >= 0.5 else -1

    def _fields(self, classifier: StateClassifier, sign: int) -> dict[str, Any]:
        return {"layer": self.layer, "site": self.site, "sign": sign, "bias": classifier.bias}


def _by_group(
    loaded: LoadedModel, renderer: ChatRenderer, examples: Sequence[Example], label: Label
) -> dict[str, Prompt]:
    """Return one prompt of each group that has the label and leaves room for an opening."""
    chats = {example.group_key: example.chat for example in examples if example.label == label}
    prompts = {key: renderer.render(chat) for key, chat in chats.items()}
    longest = loaded.max_tokens - NUM_TOKENS
    return {key: prompt for key, prompt in prompts.items() if len(prompt) <= longest}


def _tell(run: Run, stage: str, total: int, done: int) -> None:
    run.report(Progress(stage, done, total))


def _measured(unsafe: Separation, safe: Separation, sign: int) -> dict[str, float]:
    """Return what the sign was chosen by, as it is with the sign."""

    def signed(auroc: float) -> float:
        return auroc if sign == 1 else 1 - auroc

    return {
        "sign": float(sign),
        "auroc": signed(unsafe.auroc()),
        **{f"auroc_token_{n + 1}": signed(unsafe.auroc(n)) for n in range(NUM_TOKENS)},
        "gap_unsafe": sign * unsafe.gap(),
        "gap_safe": sign * safe.gap(),
        "auroc_safe": signed(safe.auroc()),
    }

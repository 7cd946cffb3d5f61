"""Whether the model is about to comply: reads the state after the first tokens of its own reply.

The model begins its greedy reply on a fork of the prefill's cache, and after a few tokens its last
state tells whether it goes on to do what was asked. It is fitted on unsafe prompts alone, of which
it is known whether the model's own reply complied (`demur label`): what is unsafe, another detector
says. As the second of a `cascade` it costs its tokens for the prompts alone that the first one
would flag.

Paper: SafeSwitch (2025), arXiv 2502.01042: the second prober, on the last layer's state after three
tokens of the reply.

Differs: a logistic regression by default, since few unsafe prompts of both outcomes are at hand;
`head="mlp"` is the paper's perceptron of 64 units, with a logit in place of the released code's
double softmax, and Adam at 1e-3 in place of AdamW at 1e-5. States are standardised, both outcomes
weigh the same, and scores are scaled to log-odds by what fits without a fifth of the groups say of
it. The reply's tokens go on from the prompt's, and are never text in between;
what was labelled is the model's reply without a guard, by two labellers that agree rather than by a
judge of seven billion parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from demur.core.errors import ConfigError, DataError, NotFittedError
from demur.core.protocols import Detector, Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, PilotTokens, Read
from demur.core.registry import import_named
from demur.detectors._layers import folds_of
from demur.detectors._network import Network

__all__ = ["Compliance"]

Head = Literal["logistic", "mlp"]
BATCH_SIZE = 32
"""Prompts a step of the perceptron's fit."""
NUM_FOLDS = 5
"""Parts of the groups, each of which is held out once to scale the scores."""
LEAST_SLOPE = 1e-3
"""Of the scaling: where the scores tell nothing, their order stays."""
REGRESSION = {"odds": 1, "weights": 1, "bias": 1}
"""Dimensions of the regression's arrays."""


@dataclass
class Compliance(Detector):
    """The log-odds that the model complies with an unsafe prompt.

    Args:
        reads: One read, of which the layers and the site count; without one, the last layer after
            the final norm is read. Where it is read follows from `num_tokens`.
    """

    num_tokens: int = 3
    """Of the reply that the model begins, 0 or more (the paper's 3); 0 reads the prefill alone."""
    head: Head = "logistic"
    """What is fitted: a `logistic` regression, or an `mlp` with one hidden layer (the paper's)."""
    c: float = 1e-2
    """Of the regression: inverse strength of the L2 penalty, as scikit-learn's `C`, over 0."""
    hidden: int = 64
    """Of the perceptron: units of its hidden layer, over 0 (the paper's 64)."""
    alpha: float = 1e-2
    """Of the perceptron: strength of the L2 penalty, as scikit-learn's `alpha`, 0 or more."""
    epochs: int = 20
    """Of the perceptron: passes over the prompts, over 0 (the paper's 20)."""
    lr: float = 1e-3
    """Of the perceptron: step size of Adam, over 0 (the paper's 1e-5, on many more prompts)."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and begin without a fit."""
        if self.head not in get_args(Head):
            raise ConfigError(f"head is {self.head!r}: expected one of {get_args(Head)}")
        if self.num_tokens < 0:
            raise ConfigError(f"num_tokens is {self.num_tokens}: expected 0 or more")
        for name in ("hidden", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("c", "lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected more than 0")
        if not self.alpha >= 0:
            raise ConfigError(f"alpha is {self.alpha}: expected 0 or more")
        self._read = _read_after(self.num_tokens, self.reads)
        self.reads = (self._read,)
        self.arrays_: dict[str, Array] | None = None

    @classmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        """Return the state after the final norm, or those after some blocks, after three tokens."""
        return cls((PilotTokens(1, layers),) if layers else ()).reads

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to the unsafe prompts with a known outcome, and return self.

        Only these prompts are read.

        Args:
            readings: That hold the read.
            targets: Of the same prompts, with `complied`.
            seed: Of the perceptron; a regression needs none.

        Raises:
            DataError: The readings and targets do not fit together, no outcome or only one of them
                is known of unsafe prompts, or a state is not finite.
        """
        if len(readings) != len(targets):
            raise DataError(
                f"the readings hold {len(readings)} prompts, the targets {len(targets)}"
            )
        rows, learnt = _learnt(targets)
        states = self._states(readings.take(rows))
        odds = self._odds(states, learnt, seed=seed)
        fitted = self._fitted_to(states, learnt, c=self.c, seed=seed)
        return self._take({**fitted, "odds": odds})

    def _fitted_to(
        self, states: Array, learnt: Targets, *, c: float, seed: int
    ) -> dict[str, Array]:
        """Return the arrays of a fit to states [prompt, feature]."""
        # scikit-learn is loaded for a fit only: scoring needs NumPy.
        if self.head == "mlp":
            arrays: dict[str, Array] = import_named("demur.detectors._mlp_fit").fit_standardised(
                states,
                learnt,
                balance="labels",
                hidden=self.hidden,
                alpha=self.alpha,
                epochs=self.epochs,
                lr=self.lr,
                batch_size=BATCH_SIZE,
                seed=seed,
            )
            return arrays
        return _regression(states, learnt, c=c)

    def _odds(self, states: Array, learnt: Targets, *, seed: int) -> Array:
        """Return the slope and intercept that make log-odds of scores: those of held-out groups.

        Where a fold leaves one outcome alone, scores stay as they are.
        """
        fold = folds_of(learnt.group, num_folds=NUM_FOLDS, seed=seed)
        scores = np.full(len(states), np.nan)
        for number in np.unique(fold):
            held = fold == number
            if len(np.unique(learnt.unsafe[~held])) < 2:
                return np.array([1.0, 0.0])
            # The penalty counts as much against fewer prompts as it does against all of them.
            c = self.c * len(held) / int((~held).sum())
            fitted = self._fitted_to(states[~held], _taken(learnt, ~held), c=c, seed=seed)
            scores[held] = self._scores(fitted, states[held])
        found = _regression(scores[:, None], learnt, c=1.0)
        return np.array([max(float(found["weights"][0]), LEAST_SLOPE), float(found["bias"][0])])

    def decision_function(self, readings: Readings) -> Array:
        """Return the log-odds [prompt] that the model complies, float64."""
        arrays = self._fitted()
        slope, intercept = arrays["odds"].tolist()
        scores: Array = slope * self._scores(arrays, self._states(readings)) + intercept
        return scores

    def _scores(self, arrays: Mapping[str, Array], states: Array) -> Array:
        """Return the scores [prompt] of fitted arrays, before they are scaled."""
        if self.head == "mlp":
            network = {name: array for name, array in arrays.items() if name != "odds"}
            return Network(network, hidden=self.hidden).score(states)
        if states.shape[1:] != arrays["weights"].shape:
            raise DataError(
                f"states have shape {states.shape}: expected [prompt, {len(arrays['weights'])}], "
                "all layers joined"
            )
        # One product a prompt: a matrix product rounds with the number of a prompt's neighbours.
        products: Array = np.vecdot(states.astype(np.float64), arrays["weights"])
        return products + float(arrays["bias"][0])

    def state(self) -> dict[str, Array]:
        """Return `odds` [2], a slope and an intercept, and what they scale.

        That is `weights` [feature] and `bias` [1], or the arrays that `Network` names.
        """
        return {name: array.copy() for name, array in self._fitted().items()}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing, has the wrong shape, or is not finite.
        """
        return self._take({name: array.copy() for name, array in state.items()})

    def _take(self, arrays: dict[str, Array]) -> Self:
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes.get("odds") != (2,) or not np.isfinite(arrays["odds"]).all():
            raise DataError(f"the state holds {shapes}: expected odds, a slope and an intercept")
        if self.head == "mlp":
            _ = Network({k: v for k, v in arrays.items() if k != "odds"}, hidden=self.hidden)
        elif {name: len(shape) for name, shape in shapes.items()} != REGRESSION:
            raise DataError(f"the state holds {shapes}: expected weights [feature] and bias [1]")
        elif not all(np.isfinite(array).all() for array in arrays.values()):
            raise DataError("a weight is not finite: fit the detector again")
        self.arrays_ = arrays
        return self

    def _fitted(self) -> dict[str, Array]:
        if self.arrays_ is None:
            raise NotFittedError("Compliance is not fitted: call fit or load_state")
        return self.arrays_

    def _states(self, readings: Readings) -> Array:
        """Return the states [prompt, feature], all layers joined."""
        states = readings.pooled(self._read)
        return states.reshape(len(states), -1)


def _read_after(num_tokens: int, given: tuple[Read, ...]) -> CaptureSpec | PilotTokens:
    """Return the read after some tokens of a reply, at the layers and site of another one.

    Raises:
        ConfigError: More than one was given, or it is none of states.
    """
    like: Read = given[0] if given else CaptureSpec((-1,), site="final_norm")
    if len(given) > 1 or not isinstance(like, CaptureSpec | PilotTokens):
        raise ConfigError(f"compliance reads {list(given)}: expected one read of states, or none")
    if num_tokens:
        return PilotTokens(num_tokens, like.layers, like.site)
    return CaptureSpec(like.layers, site=like.site)


def _learnt(targets: Targets) -> tuple[Array, Targets]:
    """Return the rows of unsafe prompts with a known outcome, and targets that are these outcomes.

    Raises:
        DataError: There are none, or they all have the same outcome.
    """
    unsafe = targets.unsafe.astype(bool)
    complied = targets.complied
    outcomes = np.full(len(targets), np.nan) if complied is None else complied.astype(float)
    rows = np.flatnonzero(unsafe & np.isfinite(outcomes))
    num_complied = int(outcomes[rows].sum())
    if not 0 < num_complied < len(rows):
        raise DataError(
            f"of {int(unsafe.sum())} unsafe prompts {num_complied} are known to be complied with "
            f"and {len(rows) - num_complied} to be refused: compliance learns from both; label the "
            "model's own replies with `demur label`, or take another model or system prompt"
        )
    return rows, Targets(outcomes[rows] == 1, targets.group[rows], targets.source[rows])


def _taken(targets: Targets, chosen: Array) -> Targets:
    """Return the targets of some prompts."""
    return Targets(targets.unsafe[chosen], targets.group[chosen], targets.source[chosen])


def _regression(features: Array, learnt: Targets, *, c: float) -> dict[str, Array]:
    """Return weights [feature] and bias [1] of a logistic regression, both outcomes alike."""
    logistic = import_named("demur.detectors._logistic")
    shares = logistic.balanced_weights(learnt, "labels")
    weights, bias = logistic.fit_standardised(
        features, learnt.unsafe, shares, c=c, max_iterations=1000
    )
    return {"weights": weights, "bias": np.array([bias])}

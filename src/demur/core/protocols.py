"""The kinds: what an engine, a detector and a responder must be.

Only engines touch models. Detectors and responders are pure: readings in, numbers or an
intervention out. Only the guard decides.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol, Self

import numpy as np

from demur.core.errors import DataError, NotFittedError
from demur.core.interventions import Intervention
from demur.core.readings import Array, Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Read, read_from_dict
from demur.core.results import Verdict
from demur.core.types import Chat, ModelId, Prompt, Sampling

Decide = Callable[[Readings], Intervention | None]


def never_intervene(readings: Readings) -> None:
    """Decide for an unguarded request: no intervention."""


@dataclass(frozen=True)
class Request:
    """One prompt on its way through an engine."""

    id: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    reads: tuple[Read, ...] = ()
    """What of the prefill goes to `decide`."""
    decide: Decide = never_intervene
    """Called once, between prefill and first token; None leaves the model untouched."""


@dataclass(frozen=True)
class Scored:
    """A request's prompt was read and decided on."""

    id: str
    prefill_s: float
    guard_s: float


@dataclass(frozen=True)
class Switched:
    """A request goes on under an intervention."""

    id: str
    intervention: Intervention


@dataclass(frozen=True)
class TokenOut:
    """A request's next token."""

    id: str
    position: int
    """Absolute position in the sequence that the model reads, prompt included."""
    token_id: int
    text: str
    """What the token adds to the reply's text; empty while a character is incomplete."""
    logprob: float


@dataclass(frozen=True)
class Done:
    """A request's reply is complete."""

    id: str
    reason: Literal["stop", "length", "replaced", "scored", "error"]
    error: str | None = None
    """Set with the reason `error`: what went wrong with this request; the others go on."""


Event = Scored | Switched | TokenOut | Done


class Engine(Protocol):
    """Runs a chat model."""

    @property
    def model_id(self) -> ModelId:
        """What detectors are matched against."""

    @property
    def capabilities(self) -> frozenset[type]:
        """The reads and interventions that this engine can do."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model takes, prompt and reply together."""

    def render(self, chat: Chat) -> Prompt:
        """Return the chat as the model will read it.

        Raises:
            ConfigError: The model has no chat template.
            DataError: The chat is empty, ends in an assistant turn, or is longer than the context.
        """

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Carry out requests; they are taken lazily, and rows join and leave a running batch.

        Yields:
            For each request `Scored`, then `Switched` if it was, its tokens, and `Done` last. The
            events of different requests mix; those of one are in order.
        """


@dataclass(frozen=True)
class Targets:
    """What is known of the prompts that a detector is fitted on; all arrays are [prompt]."""

    unsafe: Array
    """True for unsafe."""
    group: Array
    """Texts of a group never straddle folds."""
    source: Array
    """The data set that a prompt came from."""
    category: Array | None = None

    def __post_init__(self) -> None:
        """Refuse what no detector can be fitted on."""
        for name in ("group", "source"):
            if len(getattr(self, name)) != len(self.unsafe):
                raise DataError(
                    f"{name} has {len(getattr(self, name))} rows, unsafe has {len(self)}"
                )
        if len(np.unique(self.unsafe.astype(bool))) < 2:
            raise DataError(
                "a detector needs safe and unsafe prompts to learn from: only one label was given"
            )

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.unsafe)


@dataclass
class Detector(ABC):
    """A method that scores prompts: a dataclass whose fields are hyper-parameters.

    What is fitted ends in an underscore. `fit` forgets any earlier fit.
    """

    reads: tuple[Read, ...]
    """What the detector wants to see of a prompt."""

    @classmethod
    @abstractmethod
    def default_reads(
        cls, num_blocks: int, *, layers: tuple[int, ...] | None = None
    ) -> tuple[Read, ...]:
        """Return what the method reads of a model when nobody chose.

        Args:
            num_blocks: Of the model.
            layers: The decoder blocks to read; None leaves them to the method.
        """

    @abstractmethod
    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; the same seed gives the same scores.

        Raises:
            DataError: The readings and targets do not fit together, or hold a NaN.
        """

    @abstractmethod
    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt], float64; higher is less safe.

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite.
        """

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """Return the fitted arrays by name (without the underscore).

        Raises:
            NotFittedError: There are none yet.
        """

    @abstractmethod
    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over fitted arrays and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """

    def moments(self) -> dict[str, Array]:
        """Return what later sets can be merged into, by name; empty where nothing is kept."""
        return {}

    def load_moments(self, moments: Mapping[str, Array]) -> Self:
        """Take over what `moments` returned, and return self.

        Raises:
            DataError: The method keeps none, or they are not its own.
        """
        if moments:
            raise DataError(f"{type(self).__name__} keeps no moments, got {sorted(moments)}")
        return self

    def hyper_parameters(self) -> dict[str, object]:
        """Return the fields as plain values, for JSON; `from_hyper_parameters` takes them back."""
        fields = asdict(self)
        fields["reads"] = [read.as_dict() for read in self.reads]
        return fields

    @classmethod
    def from_hyper_parameters(cls, fields: Mapping[str, object]) -> Self:
        """Return an unfitted detector.

        Raises:
            DataError: A field is unknown or missing.
        """
        if not isinstance(fields, Mapping):
            raise DataError(f"the hyper-parameters are {fields!r}: expected an object")
        plain = dict(fields)
        raw_reads = plain.pop("reads", None)
        if not isinstance(raw_reads, list):
            raise DataError(f"reads is {raw_reads!r}: expected a list")
        try:
            return cls(tuple(read_from_dict(read) for read in raw_reads), **plain)
        except TypeError as error:
            raise DataError(f"{cls.__name__} does not take these fields: {error}") from error


Stream = Iterable[tuple[Array, Readings]]
"""The readings of many prompts in parts, each with the rows of its prompts among the targets.

It can be gone through more than once, and need not be in memory as a whole."""


class StreamedDetector(Detector):
    """A detector that is fitted on a part of the readings after another: memory stays flat."""

    @abstractmethod
    def fit_stream(self, parts: Stream, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self, as `fit` does.

        Args:
            parts: The readings of all prompts.
            targets: What is known of them.
            seed: The same seed gives the same scores.

        Raises:
            DataError: The parts and targets do not fit together, or hold a NaN.
        """

    def fit(self, readings: Readings, targets: Targets, *, seed: int) -> Self:
        """Fit to labelled prompts and return self; see `Detector.fit`."""
        return self.fit_stream([(np.arange(len(readings)), readings)], targets, seed=seed)


def whole(parts: Stream) -> Readings:
    """Return the readings of a stream, in the order of the rows."""
    rows, readings = zip(*parts, strict=True)
    return Readings.concatenate(readings).take(np.argsort(np.concatenate(rows)))


class LinearDetector(Detector):
    """A detector whose score is linear in the states, and so runs in any engine and without torch.

    Its fitted state is the read-out itself: `fit` sets `readout_`.
    """

    def __post_init__(self) -> None:
        """Begin without a fit."""
        self.readout_: LinearReadout | None = None

    def readout(self) -> LinearReadout:
        """Return the compiled form.

        Raises:
            NotFittedError: The detector was not fitted.
        """
        if self.readout_ is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted: call fit or load_state")
        return self.readout_

    def decision_function(self, readings: Readings) -> Array:
        """Return the scores [prompt] of the read-out."""
        return self.readout().score(readings)

    def state(self) -> dict[str, Array]:
        """Return `weights.I` [layer, d_model] of read I, float32, and `bias` [1], float64."""
        readout = self.readout()
        weights = {f"weights.{i}": array for i, array in enumerate(readout.weights.values())}
        return {**weights, "bias": np.array([readout.bias])}

    def load_state(self, state: Mapping[str, Array]) -> Self:
        """Take over a read-out and return self.

        Raises:
            DataError: An array is missing or has the wrong shape.
        """
        specs = [read for read in self.reads if isinstance(read, CaptureSpec)]
        names = [f"weights.{number}" for number in range(len(specs))]
        if set(state) != {*names, "bias"}:
            raise DataError(f"the state holds {sorted(state)}: expected {[*names, 'bias']}")
        if state["bias"].size != 1:
            raise DataError(f"bias has {state['bias'].size} values: expected one")
        weights = {spec: state[name] for spec, name in zip(specs, names, strict=True)}
        self.readout_ = LinearReadout(weights, float(state["bias"].item()))
        return self


class Responder(Protocol):
    """Says what is to be done with a flagged chat; pure."""

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> Intervention:
        """Return the intervention for a flagged chat."""

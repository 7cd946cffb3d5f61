"""The kinds: what an engine, a detector and a responder must be.

Only engines touch models. Detectors and responders are pure: readings in, numbers or an
intervention out. Only the guard decides.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from demur.core.errors import DataError
from demur.core.interventions import Intervention, MidReply
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Checkpoint, Read, read_from_dict
from demur.core.results import Verdict
from demur.core.types import Chat, ModelId, Prompt, Sampling

Decide = Callable[[Readings], Intervention | None]
Watches = Literal["prompt", "reply"]


def never_intervene(readings: Readings) -> None:
    """Decide for an unguarded request: no intervention."""


@dataclass(frozen=True)
class Monitor:
    """Watches a reply while it is decoded."""

    read: CaptureSpec
    """Of the reply's tokens, without pooling."""
    watch: Callable[[Array], MidReply | None]
    """Called once for each token of the reply, in order, with its states [layer, d_model], float32;
    None lets the reply go on."""


def never() -> bool:
    """Say that a request is still wanted."""
    return False


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
    draw_id: str | None = None
    """Seeds the draws, together with the sampling's seed; None is the request's own id."""
    monitor: Monitor | None = None
    """Called for each token once the model has read it; every token of a reply is read then, the
    last one too."""
    is_abandoned: Callable[[], bool] = never
    """Asked before the prefill and before each token: nobody waits for the reply any more."""
    wants_logprobs: bool = True
    """False lets an engine to which they cost something leave them out: they are NaN then."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """What of the prefill an intervention may want to go on from; stored until `decide` is done."""


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
class Watched:
    """A request's monitor was shown the first tokens of its reply."""

    id: str
    num_tokens: int
    monitor_s: float
    """What it took for the newest one."""


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
    """A request's reply is complete, or nobody waits for it."""

    id: str
    reason: Literal["stop", "length", "replaced", "ended", "scored", "abandoned", "error"]
    error: str | None = None
    """Set with the reason `error`: what went wrong with this request; the others go on."""


Event = Scored | Switched | Watched | TokenOut | Done


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

    def with_reply(self, prompt: Prompt, reply: str) -> Prompt:
        """Return a prompt with a reply after it, as the model has read both.

        Args:
            prompt: From `render`.
            reply: A text that stands for what the model answered.

        Raises:
            DataError: The reply is empty, or both are longer than the context.
        """

    def run(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Carry out requests; they are taken lazily, and rows join and leave a running batch.

        Args:
            requests: None says that none is waiting now: the batch goes on, and the next step asks
                again. Where nothing is under way, wait rather than give None.

        Yields:
            For each request `Scored`, then `Switched` if it was, its tokens, and `Done` last; under
            a monitor `Watched` too, and `Switched` where it intervened. The events of different
            requests mix; those of one are in order.
        """


@runtime_checkable
class PrefixCachingEngine(Protocol):
    """An engine that keeps what it read of the beginnings of prompts."""

    @property
    def num_cache_bypassed(self) -> int:
        """Prompts so far that could not use it, since a read needs all of their tokens."""


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
    complied: Array | None = None
    """1.0 where the model's own reply complied, 0.0 where it did not, NaN where that is unknown;
    None if nothing is known of any prompt."""

    def __post_init__(self) -> None:
        """Refuse what no detector can be fitted on."""
        for name in ("group", "source", "complied"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.unsafe):
                raise DataError(f"{name} has {len(values)} rows, unsafe has {len(self)}")
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
    """What the detector wants to see of a prompt, or of a reply."""
    watches: Watches = field(default="prompt", kw_only=True)
    """What it judges; the positions that a reply detector reads are those of the reply's tokens."""

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

    def measured(self) -> dict[str, float]:
        """Return what was measured while scoring since the fit, by name; nothing for most."""
        return {}

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
        plain: dict[str, Any] = dict(fields)
        raw_reads = plain.pop("reads", None)
        if not isinstance(raw_reads, list):
            raise DataError(f"reads is {raw_reads!r}: expected a list")
        try:
            return cls(tuple(read_from_dict(read) for read in raw_reads), **plain)
        except TypeError as error:
            raise DataError(f"{cls.__name__} does not take these fields: {error}") from error


class ReadyDetector(Detector):
    """A detector that can judge without a fit, since it asks a model that can judge already."""

    @abstractmethod
    def ready(self) -> Self:
        """Take scores as they come, with even odds at 0, and return self.

        Raises:
            ConfigError: A part of it has to be fitted first.
        """


class StreamingDetector(Detector):
    """A detector that can score a text while it grows, one token a step, as a reply does."""

    @abstractmethod
    def start(self, num_rows: int) -> dict[str, Array]:
        """Return the state of texts of no tokens yet; the first axis of each array is the row.

        Rows leave a running batch by indexing every array, and join it by concatenation.
        """

    @abstractmethod
    def update(self, state: dict[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        """Return the state after one more token, and the scores [row] of the texts so far.

        After the same tokens they equal those of `decision_function`. The state given stays as it
        was.

        Args:
            state: From `start` or the last `update`.
            states: Of the new token of each row, [row, layer, d_model]: what `by_token` of the one
                read gives.

        Raises:
            NotFittedError: `fit` or `load_state` did not come first.
            DataError: A state is not finite.
        """


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


class Responder(Protocol):
    """Says what is to be done with a flagged chat; pure.

    One whose attribute `ignores_verdicts` is true does the same whatever the verdicts are, so that
    replies may be kept from one detector to another; without it they are not.
    """

    @property
    def needs(self) -> frozenset[type]:
        """The interventions that an engine must be able to do."""

    def respond(self, chat: Chat, verdicts: Sequence[Verdict]) -> Intervention:
        """Return the intervention for a flagged chat."""

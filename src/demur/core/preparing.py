"""What may be done before any prompt comes: responders tell what they need, and engines load it.

All of it is optional. A responder whose answer hangs on the verdicts cannot tell what that will be,
though it may tell what an engine has to hold for it; an engine without large tensors has nothing to
load.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from demur.core.interventions import AddVectors, Intervention, UseAdapter
from demur.core.reads import Checkpoint


@runtime_checkable
class ForeseeingResponder(Protocol):
    """A responder that knows before any chat what it may return."""

    @property
    def returns(self) -> tuple[Intervention, ...]:
        """The interventions that it may return."""


Loadable = UseAdapter | AddVectors
"""What an engine that compiles its model has to hold before any request comes."""


@runtime_checkable
class LoadingResponder(Protocol):
    """A responder that tells what such an engine has to hold for it."""

    @property
    def loads(self) -> tuple[Loadable, ...]:
        """The adapters, each at its scale, and the vectors, at any scale."""


@runtime_checkable
class PreparingEngine(Protocol):
    """An engine that loads what interventions refer to."""

    def prepare(self, interventions: Iterable[Intervention]) -> None:
        """Load it, so that no request waits for it.

        Raises:
            ConfigError: There is no such artifact.
            DataError: An artifact has changed, or does not fit the model.
        """


def foreseen(responders: Iterable[object]) -> tuple[Intervention, ...]:
    """Return what responders may return, as far as they can say."""
    able = [one for one in responders if isinstance(one, ForeseeingResponder)]
    return tuple(of for one in able for of in one.returns)


def checkpoints(interventions: Iterable[Intervention]) -> tuple[Checkpoint, ...]:
    """Return what interventions may want to go on from, each once."""
    wanted = (of.checkpoint for of in interventions if isinstance(of, UseAdapter))
    return tuple(dict.fromkeys(one for one in wanted if one is not None))


def prepare(engine: object, interventions: Iterable[Intervention]) -> None:
    """Let an engine load what interventions refer to, if it can.

    Raises:
        ConfigError: There is no such artifact.
        DataError: An artifact has changed, or does not fit the model.
    """
    if isinstance(engine, PreparingEngine):
        engine.prepare(interventions)

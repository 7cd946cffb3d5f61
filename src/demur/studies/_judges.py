"""Detectors that are fitted already, rivals beside them, and ensembles: who is put to the test.

All are compared by margins: how far a score is over the threshold, in standard deviations of the
detector's scores on validation prompts. A margin of 0 or more is flagged. An ensemble flags what
one of its two heads flags: its margin is the larger one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demur.core.errors import ConfigError, DataError, MissingPackageError
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.reads import CaptureSpec, Read, middle_layer
from demur.core.shared_reads import SharedReads
from demur.studies._contenders import Contender, Pool, every_layer, user_mean
from demur.studies._measures import threshold_at
from demur.studies._study import Judge, StudyInputs

ONE_LAYER = "linear, one layer"
"""The rival that reads the middle layer alone."""


@dataclass(frozen=True)
class JudgedStudy:
    """What studies of fitted detectors have in common."""

    rivals: tuple[str, ...] = ("tfidf", "sentence_embedding", ONE_LAYER)
    """Fitted on the training prompts, with the threshold of 1% of the safe validation prompts:
    detectors by their public names, and `linear, one layer`. Those whose packages are not installed
    are left out."""
    partners: tuple[str, ...] = ("tfidf", ONE_LAYER)
    """The rivals that make an ensemble of two heads with the first detector."""

    def panel(self, inputs: StudyInputs) -> "Panel":
        """Return the detectors of the inputs, rivals and ensembles.

        Raises:
            ConfigError: There is no fitted detector, two have one name, or a partner is no rival.
        """
        if not inputs.judges:
            raise ConfigError("this study puts fitted detectors to the test, and none was given")
        unknown = sorted(set(self.partners) - set(self.rivals))
        if unknown:
            raise ConfigError(f"partners holds {unknown}: expected some of {list(self.rivals)}")
        pools = _Pools(inputs)
        fitted, left_out = _fitted(inputs, self.rivals, pools)
        judges = (*inputs.judges, *fitted)
        names = [judge.name for judge in judges]
        if len(set(names)) < len(names):
            raise ConfigError(f"the detectors are called {names}: each needs a name of its own")
        first = names[0]
        pairs = tuple((first, partner) for partner in self.partners if partner in names)
        return Panel(tuple(_with_spread(judge, pools) for judge in judges), pairs, left_out)


@dataclass(frozen=True)
class Panel:
    """Judges and ensembles of two of them."""

    judges: tuple[Judge, ...]
    pairs: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()
    """Sentences on the rivals that are missing."""

    @property
    def names(self) -> tuple[str, ...]:
        """The judges, then the ensembles."""
        return (*(judge.name for judge in self.judges), *map(_ensemble, self.pairs))

    def margins(self, inputs: StudyInputs, examples: Sequence[Example]) -> dict[str, Array]:
        """Read prompts once, and return the margins [prompt] by name, float64."""
        reads = [read for judge in self.judges for read in judge.detector.reads]
        shared = SharedReads.of(reads, num_blocks=inputs.num_blocks)
        readings = inputs.read(examples, shared.reads)
        found: dict[str, Array] = {}
        for judge in self.judges:
            detector = judge.detector
            scores = detector.decision_function(shared.cut(readings, detector.reads))
            found[judge.name] = (scores - judge.threshold) / judge.spread
        for pair in self.pairs:
            found[_ensemble(pair)] = np.maximum(found[pair[0]], found[pair[1]])
        return found


def fitting(inputs: StudyInputs, examples: Sequence[Example]) -> Array:
    """Return which prompts the model can take, [prompt]; all of them where there is no engine."""
    fits = np.ones(len(examples), bool)
    if inputs.engine is None:
        return fits
    for row, example in enumerate(examples):
        try:
            inputs.engine.render(example.chat)
        except DataError:  # longer than the context, or a turn that the template refuses
            fits[row] = False
    return fits


def prompts_of(inputs: StudyInputs, label: str, *, max_words: int) -> list[Example]:
    """Return the test prompts of a label that have one turn, few words, and no other language.

    Args:
        inputs: Whose tests.
        label: `unsafe` or `safe`.
        max_words: Of a prompt.

    Raises:
        DataError: There are none.
    """
    found = [
        example
        for examples in inputs.tests.values()
        for example in examples
        if example.label == label
        and len(example.chat.messages) == 1
        and example.language in (None, "en")
        and len(example.chat.last_user_text.split()) <= max_words
    ]
    if not found:
        raise DataError(
            f"the test sets hold no {label} English prompt of one turn and up to {max_words} words"
        )
    return found


class _Pools:
    """The training and validation prompts, read once for all detectors that can share it."""

    def __init__(self, inputs: StudyInputs) -> None:
        self._inputs = inputs
        self._known: dict[tuple[str, tuple[Read, ...]], Pool] = {}

    def train(self, reads: Sequence[Read]) -> Pool:
        """Return the training prompts with what a detector reads, or more."""
        return self._pool("train", reads, self._inputs.train)

    def val(self, reads: Sequence[Read]) -> Pool:
        """Return the validation prompts with what a detector reads, or more."""
        return self._pool("val", reads, self._inputs.val)

    def _pool(self, role: str, reads: Sequence[Read], examples: Sequence[Example]) -> Pool:
        key = (role, _shared(reads, self._inputs.num_blocks))
        if key not in self._known:
            self._known[key] = Pool.read(self._inputs, examples, key[1])
        return self._known[key]


def _shared(reads: Sequence[Read], num_blocks: int) -> tuple[Read, ...]:
    """Return reads from which some can be cut, where possible those that other studies take."""
    wide = (*every_layer(num_blocks), user_mean(tuple(range(num_blocks))))
    found = (next((of for of in wide if _covers(of, read)), read) for read in reads)
    return tuple(dict.fromkeys(found))


def _covers(wide: Read, read: Read) -> bool:
    """Tell whether a read of every layer is another one but for the layers."""
    if isinstance(wide, CaptureSpec) and isinstance(read, CaptureSpec):
        return replace(wide, layers=read.layers) == read
    return wide == read


def _fitted(
    inputs: StudyInputs, rivals: Sequence[str], pools: _Pools
) -> tuple[tuple[Judge, ...], tuple[str, ...]]:
    """Fit rivals; return them, and sentences on those whose packages are missing."""
    judges, left_out = [], []
    for name in rivals:
        contender = _contender(name, inputs.num_blocks)
        inputs.report(f"fitting {name}")
        try:
            reads = contender.unfitted(inputs.num_blocks).reads
            detector = pools.train(reads).fit(contender, seed=inputs.seeds[0])
        except MissingPackageError as error:
            left_out.append(f"{name} was left out: {error}.")
            continue
        val = pools.val(reads)
        judges.append(Judge(name, detector, threshold_at(val.score(detector)[~val.unsafe])))
    return tuple(judges), tuple(left_out)


def _contender(name: str, num_blocks: int) -> Contender:
    if name == ONE_LAYER:
        return Contender(ONE_LAYER, "linear", middle_layer(num_blocks))
    return Contender(name, name)


def _with_spread(judge: Judge, pools: _Pools) -> Judge:
    """Return a judge with the spread of its scores on validation prompts."""
    scores = pools.val(judge.detector.reads).score(judge.detector)
    return replace(judge, spread=float(scores.std()) or 1.0)


def _ensemble(pair: tuple[str, str]) -> str:
    return " + ".join(pair)

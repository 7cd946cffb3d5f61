"""Safety layers: where a model begins to tell unsafe prompts, and which blocks make it refuse.

Two questions, each with its control. The gap: by how much the angle between the states of an unsafe
and an ordinary prompt exceeds that between two of a kind, layer by layer, beside the same under
shuffled labels. The range: which neighbouring blocks, their weights multiplied by a little more
than 1, make the model refuse harmless look-alikes, beside random blocks of the same width. What is
chosen is chosen on training prompts, and measured on others.

Paper: Li et al., Safety Layers in Aligned Large Language Models: The Key to LLM Security (ICLR
2025), arXiv 2408.17003, the analyses of existence and of localisation.

Differs: prompts in pairs of like shape and length, in the model's own chat template; all pairs in
place of 500 draws; mixed pairs against both kinds of like ones (`against`); the range is judged on
prompts that it was not chosen on; a range is scaled in a copy that shares the other weights. Labels
of refusals are those of `labeller`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.registry import load
from demur.engines.transformers import TransformersEngine
from demur.modeling.block_search import Range, first_guess, random_ranges
from demur.modeling.gap_curves import LEAST, Against
from demur.studies._cases import Role, role_of
from demur.studies._gap import COLUMNS as OF_LAYERS
from demur.studies._gap import Gap, gap_plot, measure_gap, slope_plot
from demur.studies._localising import COLUMNS as OF_RANGES
from demur.studies._localising import Localised, Localiser
from demur.studies._measures import claim
from demur.studies._study import (
    IN_DISTRIBUTION,
    Cell,
    Row,
    StudyInputs,
    StudyResult,
)

__all__ = ["SafetyLayers"]

NEEDS = ("matplotlib",)

COLUMNS = ("blocks", "is", *OF_LAYERS, *OF_RANGES)
NUM_ORDINARY = 20
"""Ordinary prompts whose replies show what scaling does to the language."""


@dataclass(frozen=True)
class SafetyLayers:
    """The gap at each layer, and the range of blocks that refuses."""

    num_pairs: int = 100
    """Of an unsafe and a safe prompt, 2 or more (the paper's 100)."""
    against: Against = "both"
    """What pairs of an unsafe and an ordinary prompt are compared with: pairs of `ordinary` ones
    (the paper's), or the mean of `both` kinds of like pairs."""
    num_permutations: int = 1000
    """Shuffles of the labels, 1 or more."""
    num_draws: int = 500
    """Of prompts, for intervals, 1 or more."""
    factor: float = 1.1
    """By which weights are multiplied, over 1 (the paper's code: 1.1)."""
    reach: int = 4
    """Blocks by which either end of the range is moved at most, 0 or more."""
    num_lookalikes: int = 60
    """Harmless prompts that look dangerous, to choose the range on, and as many to judge it; 0
    leaves the range out (the paper's 721)."""
    reply_tokens: int = 16
    """Of a reply, over 0 (the paper's 16)."""
    num_random: int = 3
    """Blocks of the same width at random, 0 or more."""
    labeller: str = "refusal_match"
    """The scorer that says what is a refusal."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, least in (
            ("num_pairs", 2), ("num_permutations", 1), ("num_draws", 1), ("reach", 0),
            ("num_lookalikes", 0), ("reply_tokens", 1), ("num_random", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected {least} or more")
        if self.against not in get_args(Against):
            raise ConfigError(f"against is {self.against!r}: expected one of {get_args(Against)}")
        if not 1 < self.factor < float("inf"):
            raise ConfigError(f"factor is {self.factor}: expected more than 1, and finite")

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a layer, and one a range that was scaled.

        Raises:
            ConfigError: There is no model to answer, or no such labeller.
            DataError: There are no two groups of prompts of each label.
        """
        if not isinstance(inputs.engine, TransformersEngine):
            raise ConfigError("this study needs a model that answers: give --model")
        gap = self._gap(inputs, inputs.engine, inputs.train)
        others = inputs.tests.get(IN_DISTRIBUTION, ())
        other = self._gap(inputs, inputs.engine, others) if _are_enough(others) else None
        found = self._localised(inputs, inputs.engine, gap)
        rows = [
            _row(str(layer), _within(layer, gap, found), gap.cells(layer, other))
            for layer in range(inputs.num_blocks)
        ]
        findings = [gap.finding("training prompts")]
        if other is not None:
            findings.append(other.finding("prompts that are no training prompts"))
        findings.append(_gap_claim(gap))
        if found is None:
            findings.append("No range was looked for: there are no look-alikes to choose it on.")
        else:
            rows += _range_rows(found)
            findings += [*found.findings(), _range_claim(found, gap)]
        return StudyResult(
            title="Safety layers",
            question="Where does a model begin to tell unsafe from ordinary prompts, and which "
            "blocks make it refuse?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=(
                gap_plot(gap, other),
                slope_plot(gap),
                *(() if found is None else (found.plot(),)),
            ),
            findings=tuple(findings),
        )

    def _gap(
        self, inputs: StudyInputs, engine: TransformersEngine, examples: Sequence[Example]
    ) -> Gap:
        return measure_gap(
            inputs,
            engine,
            examples,
            num_pairs=self.num_pairs,
            num_permutations=self.num_permutations,
            num_draws=self.num_draws,
            against=self.against,
        )

    def _localised(
        self, inputs: StudyInputs, engine: TransformersEngine, gap: Gap
    ) -> Localised | None:
        """Return what scaling finds; None without look-alikes."""
        tested = [example for of in inputs.tests.values() for example in of]
        seed, most = inputs.seeds[0], self.num_lookalikes
        to_choose = drawn([*inputs.train, *inputs.val], "look_alike", most=most, seed=seed)
        to_judge = drawn(tested, "look_alike", most=most, seed=seed)
        if not to_choose or not to_judge:
            return None
        localiser = Localiser(
            engine.loaded, self.factor, self.reply_tokens, load("scorers", self.labeller)(), inputs
        )
        start = first_guess(gap.rise, num_blocks=inputs.num_blocks)
        search = localiser.search(start, to_choose, reach=self.reach)
        randoms: list[Range] = []
        if search.chosen.width < inputs.num_blocks:
            randoms = random_ranges(
                search.chosen, num_blocks=inputs.num_blocks, count=self.num_random, seed=seed
            )
        ranges = list(dict.fromkeys([search.chosen, start, *randoms]))
        ordinary = drawn(tested, "ordinary", most=NUM_ORDINARY, seed=seed)
        nll = localiser.surprise(ordinary, ranges)
        return Localised(
            search=search,
            randoms=tuple(randoms),
            refused={of: localiser.refused(to_judge, of) for of in (None, *ranges)},
            nll=dict(zip([None, *ranges], nll, strict=True)),
            group=np.array([example.group_key for example in to_judge]),
        )


def drawn(examples: Sequence[Example], role: Role, *, most: int, seed: int) -> list[Example]:
    """Return prompts of a role, drawn without order from all of them.

    Args:
        examples: Labelled.
        role: That they play.
        most: How many, 0 or more.
        seed: Of the draw.
    """
    found = [example for example in examples if role_of(example) == role]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[row] for row in order[:most]]


def _are_enough(examples: Sequence[Example]) -> bool:
    """Tell whether there are two groups of each label."""
    unsafe, safe = ({e.group_key for e in examples if e.label == of} for of in ("unsafe", "safe"))
    return min(len(unsafe - safe), len(safe - unsafe)) >= LEAST


def _row(blocks: str, role: str | None, cells: Mapping[str, Cell]) -> Row:
    """Return a row of the table; what a row of its kind has not stays empty."""
    return {"blocks": blocks, "is": role} | {name: cells.get(name) for name in COLUMNS[2:]}


def _within(layer: int, gap: Gap, found: Localised | None) -> str | None:
    """Return which ranges a layer is in, in words."""
    words = []
    if gap.rise is not None and gap.rise.first <= layer <= gap.rise.last:
        words.append("gap grows")
    if found is not None and layer in found.search.chosen.layers:
        words.append("safety layers")
    return ", ".join(words) or None


def _range_rows(found: Localised) -> list[Row]:
    """Return a row for the model as it is, for each range that was tried and for random ones."""
    start = next(iter(found.search.counts))
    named = dict.fromkeys(found.search.counts, "tried")
    named |= {start: "first guess", **dict.fromkeys(found.randoms, "random")}
    named[found.search.chosen] = "safety layers"
    return [
        _row("none", "as it is", found.cells(None)),
        *(_row(str(of), name, found.cells(of)) for of, name in named.items()),
    ]


def _gap_claim(gap: Gap) -> str:
    return claim(
        "the paper: states of unsafe and ordinary prompts part from some layer on",
        holds=gap.rise is not None,
        numbers=f"the largest gap is {gap.curves.gap.max():.1f} degrees, under shuffled labels "
        f"below {gap.largest_by_chance:.1f} in 95% of draws",
    )


def _range_claim(found: Localised, gap: Gap) -> str:
    over, guess = found.over_random(), "none"
    if gap.rise is not None:
        guess = f"{gap.rise.first}-{gap.rise.last}"
    return claim(
        "the paper: scaling the safety layers makes a model refuse more, other blocks do not",
        holds=found.change(found.search.chosen, None)[1][0] > 0
        and (over is None or over[1][0] > 0),
        numbers=f"blocks {found.search.chosen}, where the gap grows in {guess}",
    )

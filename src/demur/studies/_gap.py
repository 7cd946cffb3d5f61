"""The gap between unsafe and ordinary prompts at each layer, beside what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demur.core.examples import Example
from demur.core.protocols import Engine
from demur.core.readings import Array
from demur.core.reads import CaptureSpec
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.modeling.gap_curves import (
    MOST_BY_CHANCE,
    Against,
    Cosines,
    Curves,
    Rise,
    chance_of,
    rise_of,
)
from demur.studies._study import Cell, Plot, Series, StudyInputs
from demur.trainers._anchors import pick_pairs

LEVEL = 0.95
COLUMNS = (
    "cosine_ordinary", "cosine_unsafe", "cosine_mixed", "gap", "gap_low", "gap_high", "chance_low",
    "chance_high", "slope", "slope_chance_high", "gap_centred", "gap_as_published",
    "gap_other_prompts",
)  # fmt: skip

Ends = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Gap:
    """What was measured of one pool of prompts."""

    num_pairs: int
    """Of an unsafe and a safe prompt of like shape."""
    curves: Curves
    centred: Curves
    interval: Array
    """Of the gap, over draws of prompts, [low and high, layer]."""
    chance: Array
    """Of the gap under shuffled labels, [low and high, layer]."""
    slope_chance: Array
    """What a slope stays under in 97.5% of shuffles, [layer]."""
    largest_by_chance: float
    """What the largest gap of all layers stays under in 95% of shuffles, in degrees."""
    p: float
    """The share of shuffles whose largest gap is as large."""
    rise: Rise | None
    """Where the gap grows; None if it does not, or no more than chance explains."""
    first: Ends | None
    """The interval of the layer from which it grows."""
    last: Ends | None
    """The interval of the layer at which it has levelled off."""

    @property
    def as_published(self) -> Array:
        """The gap against ordinary pairs alone, [layer]."""
        return replace(self.curves, against="ordinary").gap

    @property
    def largest(self) -> int:
        """The layer of the largest gap."""
        return int(self.curves.gap.argmax())

    def cells(self, layer: int, other: "Gap | None") -> dict[str, Cell]:
        """Return what the table says of a layer.

        Args:
            layer: 0-based.
            other: The gap of other prompts, where there are any.
        """
        return {
            "cosine_ordinary": float(self.curves.ordinary[layer]),
            "cosine_unsafe": float(self.curves.unsafe[layer]),
            "cosine_mixed": float(self.curves.mixed[layer]),
            "gap": float(self.curves.gap[layer]),
            "gap_low": float(self.interval[0, layer]),
            "gap_high": float(self.interval[1, layer]),
            "chance_low": float(self.chance[0, layer]),
            "chance_high": float(self.chance[1, layer]),
            "slope": float(self.curves.slope[layer]),
            "slope_chance_high": float(self.slope_chance[layer]),
            "gap_centred": float(self.centred.gap[layer]),
            "gap_as_published": float(self.as_published[layer]),
            "gap_other_prompts": None if other is None else float(other.curves.gap[layer]),
        }

    def finding(self, of: str) -> str:
        """Say how large the gap is, and where it grows.

        Args:
            of: What the prompts are called.
        """
        at, low, high = self.largest, *self.interval[:, self.largest]
        words = (
            f"Gap on {self.num_pairs} pairs of {of}: {self.curves.gap[at]:.1f} degrees at most "
            f"({low:.1f} to {high:.1f}), after block {at}; under shuffled labels the largest one "
            f"stays under {self.largest_by_chance:.1f} (p = {self.p:.3g}); with the mean taken "
            f"away {self.centred.gap.max():.1f}, against ordinary pairs alone "
            f"{self.as_published.max():.1f}."
        )
        if self.rise is None:
            return f"{words} It grows nowhere by more than chance explains."
        return (
            f"{words} It grows from block {self.rise.first} ({_ends(self.first)}) and has levelled "
            f"off at block {self.rise.last} ({_ends(self.last)})."
        )


def measure_gap(
    inputs: StudyInputs,
    engine: Engine,
    examples: Sequence[Example],
    *,
    num_pairs: int,
    num_permutations: int,
    num_draws: int,
    against: Against,
) -> Gap:
    """Measure the gap on prompts.

    Args:
        inputs: Reads the prompts; its first seed draws them.
        engine: Renders them.
        examples: Labelled; pairs of like shape are picked of them.
        num_pairs: At most.
        num_permutations: Shuffles of the labels.
        num_draws: Of prompts, for intervals.
        against: Which pairs the mixed ones are compared with.

    Raises:
        DataError: There are no two groups of prompts of each label.
    """
    seed = inputs.seeds[0]
    unsafe, safe = pick_pairs(examples, engine.render, count=num_pairs, seed=seed)
    # Copies: of the sets' own prompts a whole set would be read.
    chosen = [replace(example) for example in (*safe, *unsafe)]
    spec = CaptureSpec(tuple(range(inputs.num_blocks)))
    inputs.report(f"reading {len(chosen)} prompts at every layer")
    states = inputs.read(chosen, (spec,)).pooled(spec)
    is_unsafe = np.arange(len(chosen)) >= len(safe)
    cosines = Cosines(states, is_unsafe, against=against)
    curves = cosines.curves()
    inputs.report(f"{num_permutations} shuffles of labels, {num_draws} draws of prompts")
    shuffled = list(cosines.permuted(num_permutations, seed=seed))
    gaps = np.stack([of.gap for of in shuffled])  # [shuffle, layer]
    p = chance_of(curves.gap, gaps)
    rise = rise_of(curves.gap) if p <= MOST_BY_CHANCE else None
    group = np.array([example.group_key for example in chosen])
    drawn = [
        cosines.curves(rows).gap
        for rows in GroupBootstrap(
            [group[~is_unsafe], group[is_unsafe]], num_draws=num_draws, seed=seed
        ).rows(group)
    ]
    rises = [] if rise is None else [found for of in drawn if (found := rise_of(of))]
    return Gap(
        num_pairs=len(safe),
        curves=curves,
        centred=Cosines(states, is_unsafe, is_centred=True, against=against).curves(),
        interval=_band(np.stack(drawn)),
        chance=_band(gaps),
        slope_chance=_band(np.stack([of.slope for of in shuffled]))[1],
        largest_by_chance=float(np.quantile(gaps.max(1), LEVEL)),
        p=p,
        rise=rise,
        first=_interval([of.first for of in rises]),
        last=_interval([of.last for of in rises]),
    )


def gap_plot(gap: Gap, other: Gap | None) -> Plot:
    """Return the curves of the gap, with the band of shuffled labels."""
    layers = tuple(float(layer) for layer in range(len(gap.curves.gap)))
    lines = {
        "mixed pairs against like ones": gap.curves.gap,
        "shuffled labels, 97.5%": gap.chance[1],
        "shuffled labels, 2.5%": gap.chance[0],
        "mean taken away": gap.centred.gap,
        "against ordinary pairs alone": gap.as_published,
        **({} if other is None else {"other prompts": other.curves.gap}),
    }
    half = tuple(((gap.interval[1] - gap.interval[0]) / 2).tolist())
    return Plot(
        "gap",
        "Angle between unsafe and ordinary prompts, less that between like ones",
        "block",
        "degrees",
        tuple(
            Series(label, layers, tuple(line.tolist()), half if line is gap.curves.gap else ())
            for label, line in lines.items()
        ),
    )


def slope_plot(gap: Gap) -> Plot:
    """Return what the gap grows by from block to block."""
    layers = tuple(float(layer) for layer in range(len(gap.curves.gap)))
    lines = {"slope": gap.curves.slope, "shuffled labels, 97.5%": gap.slope_chance}
    return Plot(
        "slope",
        "Growth of the gap from block to block",
        "block",
        "degrees",
        tuple(Series(label, layers, tuple(line.tolist())) for label, line in lines.items()),
    )


def _band(values: Array) -> Array:
    """Return the ends between which 95% of values [draw, layer] lie, [low and high, layer]."""
    found: Array = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return found


def _interval(values: Sequence[int]) -> Ends | None:
    return GroupBootstrap.interval(np.array(values, float), level=LEVEL) if values else None


def _ends(ends: Ends | None) -> str:
    return "unknown" if ends is None else f"{ends[0]:.0f} to {ends[1]:.0f}"

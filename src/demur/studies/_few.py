"""What few prompts are enough for: detectors against the last-layer prototypes of the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demur.studies._measures import Difference, claim, mean

LAST_LAYER, MULTI_LAYER = "LPM, last layer", "MLPM"
"""The detectors of the papers' sample-size studies."""
FEW, MANY = 10, 1000
"""Prompts a class at which the papers' detectors change places."""


@dataclass(frozen=True)
class Measured:
    """What one detector, fitted on one draw, makes of the tests."""

    label: str
    size: int
    """Prompts a class."""
    seed: int
    values: Mapping[str, float | None]
    """By measure; `val_auroc` among them."""


def over_last_layer(found: Sequence[Measured]) -> list[str]:
    """Say for each size how much higher the F1 of each detector is than that of the last layer."""
    findings = []
    for size in dict.fromkeys(one.size for one in found):
        labels = dict.fromkeys(one.label for one in found if one.size == size)
        base = mean(list(_values(found, LAST_LAYER, size, "f1").values()))
        if LAST_LAYER not in labels or base is None:
            continue
        gaps = {
            label: gap
            for label in labels
            if label != LAST_LAYER and (gap := over(found, label, LAST_LAYER, size=size))
        }
        if not gaps:
            continue
        chosen = max(labels, key=lambda label: _mean_on_val(found, label, size))
        best = max(gaps, key=lambda label: gaps[label].mean)
        taken = f"validation takes {chosen}"
        if chosen in gaps:
            taken += f", {gaps[chosen]}"
        findings.append(
            f"{size} prompts a class, F1 over {LAST_LAYER} ({base:.4f}): {taken}; the highest in "
            f"hindsight is {best}, {gaps[best]}."
        )
    return findings


def claims(found: Sequence[Measured]) -> list[str]:
    """Say whether the papers' two detectors change places with more prompts."""
    sizes = sorted({one.size for one in found})
    few = next((size for size in sizes if size <= FEW), None)
    many = next((size for size in reversed(sizes) if size >= MANY), None)
    said = []
    if few is not None and (gap := over(found, MULTI_LAYER, LAST_LAYER, size=few)):
        said.append(
            claim(
                "v3: on the fewest prompts the last layer is better than all layers combined",
                holds=gap.is_lower,
                numbers=f"at {few} a class the F1 of {MULTI_LAYER} differs by {gap}; in the paper "
                "by -0.046, -0.011 and -0.022 on three models",
            )
        )
    if many is not None and (gap := over(found, MULTI_LAYER, LAST_LAYER, size=many)):
        said.append(
            claim(
                "v3: on many prompts all layers combined are better than the last layer",
                holds=gap.is_higher,
                numbers=f"at {many} a class the F1 of {MULTI_LAYER} differs by {gap}",
            )
        )
    return said


def over(found: Sequence[Measured], ours: str, theirs: str, *, size: int) -> Difference | None:
    """Return how much higher the F1 of one detector is, on the draws that both were fitted on."""
    of_ours, of_theirs = (_values(found, label, size, "f1") for label in (ours, theirs))
    seeds = [seed for seed in of_ours if seed in of_theirs]
    return Difference.of([of_ours[s] for s in seeds], [of_theirs[s] for s in seeds])


def _values(
    found: Sequence[Measured], label: str, size: int, measure: str
) -> dict[int, float | None]:
    """Return a measure by seed."""
    return {
        one.seed: one.values[measure] for one in found if (one.label, one.size) == (label, size)
    }


def _mean_on_val(found: Sequence[Measured], label: str, size: int) -> float:
    return mean(list(_values(found, label, size, "val_auroc").values())) or 0.0

"""Aggregation: how the states of many tokens, and of many layers, best become one score.

Over tokens: a linear detector on one layer's state at the last token, on the mean or the maximum
over the user's tokens, and the aggregates of `token_linear`, which scores each token. Over layers:
an unweighted vote, a sparse learned combination and one linear detector on several layers joined.
Each is fitted once a seed. Other kinds of detectors on one token and on all are in `detectors`.

Paper: Efficient LLM Moderation with Multi-Layer Latent Prototypes (2026), arXiv 2502.16174 v3, the
combination of layers.

Differs: the paper combines layers of the last token only, and does not compare with the vote.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from demur.core.reads import CaptureSpec, middle_layer, spread_layers
from demur.studies._contenders import Contender, needed, users_tokens
from demur.studies._measures import claim
from demur.studies._repeats import COLUMNS as MEASURES
from demur.studies._repeats import SHARE, Repeated, best_of, judged_by, repeat
from demur.studies._study import Plot, Row, Series, StudyInputs, StudyResult

__all__ = ["Aggregation"]

NEEDS = ("matplotlib",)

VOTE, COMBINATION = "layer_vote", "layered_prototypes"
COLUMNS = ("over", "detector", "draws", *MEASURES)


@dataclass(frozen=True)
class Aggregation:
    """Ways to read many tokens or many layers."""

    layer: int | None = None
    """Of which the tokens are read, from 0; None is the one after half of the depth."""
    aggregates: tuple[str, ...] = (
        "last", "mean", "max", "softmax", "ema", "window_mean", "top_windows",
    )  # fmt: skip
    """Of `token_linear`; none leaves it out."""

    share: float = SHARE
    """Of the training prompts of each label that one seed draws, over 0 to 1."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a read-out, over tokens first."""
        over_tokens = self._over_tokens(inputs.num_blocks)
        several = spread_layers(inputs.num_blocks, start=1 / 3, count=10)
        over_layers = [
            *(Contender(method, method) for method in (VOTE, COMBINATION)),
            Contender("linear, several layers", "linear", reads=(CaptureSpec(several),)),
        ]
        contenders = [*over_tokens, *over_layers]
        reads = needed(contenders, inputs.num_blocks)
        found = repeat(inputs, contenders, reads, share=self.share)
        parts = {"tokens": found[: len(over_tokens)], "layers": found[len(over_tokens) :]}
        rows: list[Row] = [
            {
                "over": over,
                "detector": of.contender.label,
                "draws": len(of.of_seeds),
                **of.cells(),
            }
            for over, of_part in parts.items()
            for of in of_part
        ]
        return StudyResult(
            title="Aggregation",
            question="Which way to read many tokens, or many layers, separates best, and does a "
            "learned combination of layers beat a plain vote?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=tuple(_bars(rows, over) for over in parts),
            findings=(
                *(_best(of_part, over) for over, of_part in parts.items()),
                *_claim_of_combination(parts["layers"]),
            ),
        )

    def _over_tokens(self, num_blocks: int) -> list[Contender]:
        layers = middle_layer(num_blocks) if self.layer is None else (self.layer % num_blocks,)
        pools: tuple[Literal["mean", "max"], ...] = ("mean", "max")
        found = [
            Contender("linear, last token", "linear", reads=(CaptureSpec(layers),)),
            *(
                Contender(
                    f"linear, {pool} over user tokens",
                    "linear",
                    reads=(replace(users_tokens(layers), pool=pool),),
                )
                for pool in pools
            ),
        ]
        for aggregate in self.aggregates:
            label, parameters = f"token_linear, {aggregate}", {"aggregation": aggregate}
            found.append(Contender(label, "token_linear", layers, parameters=parameters))
        return found


def _bars(rows: Sequence[Row], over: str) -> Plot:
    series = []
    for column, label in (
        ("test_auroc", "in distribution"),
        ("outside_auroc", "mean over outside sets"),
    ):
        known = [row for row in rows if row["over"] == over and row[column] is not None]
        names = tuple(str(row["detector"]) for row in known)
        values, errors = (
            tuple(float(row[name] or 0) for row in known) for name in (column, f"{column}_sd")
        )
        series.append(Series(label, names, values, errors))
    title = f"AUROC by read-out over {over}"
    return Plot(over, title, "", "AUROC", tuple(s for s in series if s.x), kind="bar")


def _best(found: Sequence[Repeated], over: str) -> str:
    """Say which read-out validation prompts take, and which hindsight would take."""
    measure = judged_by(found)
    chosen, best = best_of(found, "val_auroc"), best_of(found, measure)
    return (
        f"Over {over}: {chosen.contender.label} has the highest validation AUROC and "
        f"{chosen.mean(measure) or 0.0:.4f} on the tests ({measure}); the highest there is "
        f"{best.contender.label} ({best.mean(measure) or 0.0:.4f})."
    )


def _claim_of_combination(found: Sequence[Repeated]) -> list[str]:
    """Say whether what is learned over layers is worth more than their vote."""
    vote, combination = (
        next(of for of in found if of.contender.label == label) for label in (VOTE, COMBINATION)
    )
    measure = judged_by(found)
    gap = combination.minus(vote, measure)
    if gap is None:
        return []
    return [
        claim(
            "v3: a learned combination of layers is better than a vote of all",
            holds=gap.is_higher,
            numbers=f"it is ahead by {gap} in {measure}; in the paper by 0.7, 0.9 and 0.0 points "
            "of F1 on three models",
        )
    ]

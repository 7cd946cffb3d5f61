"""Aggregation: how the states of many tokens, and of many layers, best become one score.

Over tokens: a linear detector on one layer's state at the last token, on the mean or the maximum
over the user's tokens, and the aggregates of `token_linear`, which scores each token. Over layers:
an unweighted vote, a sparse learned combination and one linear detector on several layers joined.

Paper: Efficient LLM Moderation with Multi-Layer Latent Prototypes (2026), arXiv 2502.16174 v3, the
combination of layers.

Differs: the paper combines layers of the last token only, and does not compare with the vote.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from demur.core.reads import CaptureSpec, Read, middle_layer
from demur.metrics.auroc import auroc
from demur.studies._contenders import PLACING, Contender, Pool, every_layer, placing, score_tests
from demur.studies._measures import threshold_at
from demur.studies._study import Cell, Plot, Row, Series, StudyInputs, StudyResult

__all__ = ["Aggregation"]

NEEDS = ("matplotlib",)

COLUMNS = ("over", "detector", "val_auroc", *PLACING)


@dataclass(frozen=True)
class Aggregation:
    """Ways to read many tokens or many layers."""

    layer: int | None = None
    """Of which the tokens are read, from 0; None is the one after half of the depth."""
    aggregates: tuple[str, ...] = (
        "last", "mean", "max", "softmax", "ema", "window_mean", "top_windows",
    )  # fmt: skip
    """Of `token_linear`; none leaves it out."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a read-out, over tokens first."""
        over_tokens = self._over_tokens(inputs.num_blocks)
        over_layers = [
            Contender("layer_vote", "layer_vote"),
            Contender("layered_prototypes", "layered_prototypes"),
            Contender("linear, several layers", "linear"),
        ]
        contenders = [*over_tokens, *over_layers]
        reads = _needed(contenders, inputs.num_blocks)
        train = Pool.read(inputs, inputs.train, reads)
        val = Pool.read(inputs, inputs.val, reads)
        detectors = []
        for contender in contenders:
            inputs.report(f"fitting {contender.label}")
            detectors.append(train.fit(contender, seed=inputs.seeds[0]))
        tests = score_tests(inputs, detectors, reads)
        rows: list[Row] = []
        for number, contender in enumerate(contenders):
            scores = val.score(detectors[number])
            row: dict[str, Cell] = {
                "over": "tokens" if number < len(over_tokens) else "layers",
                "detector": contender.label,
                "val_auroc": auroc(scores, val.unsafe),
            }
            threshold = threshold_at(scores[~val.unsafe])
            rows.append({**row, **placing(tests, number, threshold=threshold)})
        return StudyResult(
            title="Aggregation",
            question="Which way to read many tokens, or many layers, separates best, and does a "
            "learned combination of layers beat a plain vote?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=tuple(_bars(rows, over) for over in ("tokens", "layers")),
            findings=tuple(_best(rows, over) for over in ("tokens", "layers")),
        )

    def _over_tokens(self, num_blocks: int) -> list[Contender]:
        layers = middle_layer(num_blocks) if self.layer is None else (self.layer % num_blocks,)
        found = [
            Contender("linear, last token", "linear", layers),
            *(
                Contender(
                    f"linear, {pool} over user tokens",
                    "linear",
                    reads=(CaptureSpec(layers, positions="user", pool=pool),),
                )
                for pool in ("mean", "max")
            ),
        ]
        for aggregate in self.aggregates:
            label, parameters = f"token_linear, {aggregate}", {"aggregation": aggregate}
            found.append(Contender(label, "token_linear", layers, parameters=parameters))
        return found


def _needed(contenders: Sequence[Contender], num_blocks: int) -> tuple[Read, ...]:
    """Return the reads of every layer, and those that cannot be cut from them."""
    reads = list(every_layer(num_blocks))
    for contender in contenders:
        for read in contender.unfitted(num_blocks).reads:
            is_there = isinstance(read, CaptureSpec) and read.positions == "last"
            if not is_there and read not in reads:
                reads.append(read)
    return tuple(reads)


def _bars(rows: Sequence[Row], over: str) -> Plot:
    series = []
    for column, label in (
        ("test_auroc", "in distribution"),
        ("outside_auroc", "mean over outside sets"),
    ):
        known = [row for row in rows if row["over"] == over and row[column] is not None]
        names = tuple(str(row["detector"]) for row in known)
        values = tuple(float(row[column] or 0) for row in known)
        series.append(Series(label, names, values))
    title = f"AUROC by read-out over {over}"
    return Plot(over, title, "", "AUROC", tuple(s for s in series if s.x), kind="bar")


def _best(rows: Sequence[Row], over: str) -> str:
    """Say which read-out validation prompts take, and which hindsight would take."""
    those = [row for row in rows if row["over"] == over]
    column = "test_auroc" if those[0]["outside_auroc"] is None else "outside_auroc"
    chosen = max(those, key=lambda row: float(row["val_auroc"] or 0))
    best = max(those, key=lambda row: float(row[column] or 0))
    return (
        f"Over {over}: {chosen['detector']} has the highest validation AUROC and "
        f"{float(chosen[column] or 0):.4f} on the tests ({column}); the highest there is "
        f"{best['detector']} ({float(best[column] or 0):.4f})."
    )

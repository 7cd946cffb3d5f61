"""Detectors: linear, perceptron and transformer; one token or all; with and without a question.

Each kind of detector is fitted to one layer's states, once a seed: at the last token, and on all
tokens of the user's. Both are done for prompts as they are and for prompts inside a question that
asks the model whether they are unsafe; beside them stands the model's own answer to it. Which layer
is best is the question of `layers`; whether the model answers what it recognises, of `prompting`.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174 v1, the study of detectors.

Differs: the paper's code is not released, so sizes and optimisers are ours; prompts of many sources
instead of one; a draw of the training prompts a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from demur.core.reads import CaptureSpec, middle_layer
from demur.studies._contenders import Contender, needed, users_tokens
from demur.studies._measures import claim
from demur.studies._repeats import COLUMNS as MEASURES
from demur.studies._repeats import SHARE, Repeated, best_of, judged_by, repeat
from demur.studies._study import Plot, Row, Series, StudyInputs, StudyResult
from demur.studies._wording import inside_wording

__all__ = ["Detectors"]

NEEDS = ("matplotlib",)

PLAIN, WRAPPED = "as it is", "inside a question"
LAST, ALL, NONE = "last", "all", "none"
COLUMNS = ("detector", "tokens", "layer", "prompt", "draws", *MEASURES)
ENOUGH = 0.01
"""AUROC by which all tokens may be ahead while the last one still counts as enough."""


@dataclass(frozen=True)
class Detectors:
    """Kinds of detectors on the states of one layer."""

    layer: int | None = None
    """Which is read, from 0; None is the one after half of the depth. The last one is read too."""
    wording: int = 0
    """Of the detector `prompted`: the question that prompts are put into, 0 to 9."""
    share: float = SHARE
    """Of the training prompts of each label that one seed draws, over 0 to 1."""

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a detector, tokens, layer and form of the prompt."""
        kinds = self._kinds(inputs.num_blocks)
        asked = _Kind(
            Contender(
                "asked", "prompted", parameters={"wrapper": self.wording, "num_calibrated": 0}
            ),
            NONE,
            None,
        )
        found = [
            *self._judge(inputs, kinds, prompt=PLAIN),
            *self._judge(inside_wording(inputs, self.wording), kinds, prompt=WRAPPED),
            *self._judge(inputs, [asked], prompt=WRAPPED),
        ]
        return StudyResult(
            title="Detectors",
            question="Does it take more than a linear detector, more than the last token, or a "
            "question around the prompt, to tell unsafe prompts by a model's states?",
            columns=COLUMNS,
            rows=tuple(of.row() for of in found),
            plots=(_bars(found, "test_auroc"), _bars(found, "outside_auroc"))
            if found[0].repeated.mean("outside_auroc") is not None
            else (_bars(found, "test_auroc"),),
            findings=_findings(found),
        )

    def _kinds(self, num_blocks: int) -> list["_Kind"]:
        middle = middle_layer(num_blocks) if self.layer is None else (self.layer % num_blocks,)
        last = (num_blocks - 1,)
        tokens = users_tokens(middle)
        averaged = replace(tokens, pool="mean")
        at_last = [
            _Kind(
                Contender(f"{method}, last token", method, reads=(CaptureSpec(layers),)),
                LAST,
                layers[0],
            )
            for layers in dict.fromkeys((middle, last))
            for method in ("linear", "mlp")
        ]
        over_all = (
            Contender("linear, mean over tokens", "linear", reads=(averaged,)),
            Contender("mlp, mean over tokens", "mlp", reads=(averaged,)),
            Contender("linear, each token", "token_linear", reads=(tokens,)),
            Contender("transformer", "token_transformer", reads=(tokens,)),
        )
        return [*at_last, *(_Kind(of, ALL, middle[0]) for of in over_all)]

    def _judge(
        self, inputs: StudyInputs, kinds: Sequence["_Kind"], *, prompt: str
    ) -> list["_Judged"]:
        inputs.report(f"prompts {prompt}")
        contenders = [kind.contender for kind in kinds]
        reads = needed(contenders, inputs.num_blocks)
        found = repeat(inputs, contenders, reads, share=self.share)
        return [_Judged(kind, prompt, of) for kind, of in zip(kinds, found, strict=True)]


@dataclass(frozen=True)
class _Kind:
    contender: Contender
    tokens: str
    layer: int | None


@dataclass(frozen=True)
class _Judged:
    kind: _Kind
    prompt: str
    repeated: Repeated

    @property
    def label(self) -> str:
        """The detector, its layer and the form of the prompt."""
        layer = "" if self.kind.layer is None else f", layer {self.kind.layer}"
        return f"{self.kind.contender.label}{layer}, {self.prompt}"

    def row(self) -> Row:
        """Return the row of the table."""
        return {
            "detector": self.kind.contender.label,
            "tokens": self.kind.tokens,
            "layer": self.kind.layer,
            "prompt": self.prompt,
            "draws": len(self.repeated.of_seeds),
            **self.repeated.cells(),
        }


def _findings(found: Sequence[_Judged]) -> tuple[str, ...]:
    """Say which of the paper's claims hold; detectors are chosen on validation prompts."""
    measure = judged_by([of.repeated for of in found])
    *of_states, asked = found
    plain = [of for of in of_states if of.prompt == PLAIN]
    last = [of for of in plain if of.kind.tokens == LAST]
    linear = [of for of in last if of.kind.contender.method == "linear"]
    best = {
        name: _chosen(those)
        for name, those in (
            ("linear", linear),
            ("last", last),
            ("all", [of for of in plain if of.kind.tokens == ALL]),
            ("other", [of for of in plain if of not in linear]),
            ("plain", plain),
            ("wrapped", [of for of in of_states if of.prompt == WRAPPED]),
        )
    }
    findings = [f"Compared by {measure}; of several detectors validation takes one."]
    findings += [_gap("More than the last token", best["all"], best["last"], measure)]
    findings += [_gap("More than linear on the last token", best["other"], best["linear"], measure)]
    findings += [_gap("Inside a question", best["wrapped"], best["plain"], measure)]
    gap = best["all"].repeated.minus(best["last"].repeated, measure)
    if gap is not None:
        findings.append(
            claim(
                "v1: the state of the last token is enough",
                holds=not (gap.is_higher and gap.mean > ENOUGH),
                numbers=f"all tokens are ahead by {gap}; up to {ENOUGH} counts as enough",
            )
        )
    gap = best["plain"].repeated.minus(asked.repeated, measure)
    if gap is not None:
        findings.append(
            claim(
                "v1: a light detector on states tells unsafe prompts better than asking the model",
                holds=gap.is_higher,
                numbers=f"{best['plain'].label} is ahead by {gap}",
            )
        )
    return tuple(findings)


def _chosen(those: Sequence[_Judged]) -> _Judged:
    best = best_of([of.repeated for of in those], "val_auroc")
    return next(of for of in those if of.repeated is best)


def _gap(what: str, ours: _Judged, theirs: _Judged, measure: str) -> str:
    means = [f"{of.repeated.mean(measure) or 0.0:.4f}" for of in (ours, theirs)]
    gap = ours.repeated.minus(theirs.repeated, measure)
    return f"{what}: {ours.label}, {means[0]}, against {theirs.label}, {means[1]}: {gap}."


def _bars(found: Sequence[_Judged], measure: str) -> Plot:
    series = []
    for prompt in (PLAIN, WRAPPED):
        those = [of for of in found if of.prompt == prompt]
        cells = [of.repeated.cells() for of in those]
        series.append(
            Series(
                prompt,
                tuple(of.label.removesuffix(f", {prompt}") for of in those),
                tuple(float(cell[measure] or 0) for cell in cells),
                tuple(float(cell[f"{measure}_sd"] or 0) for cell in cells),
            )
        )
    where = "in distribution" if measure == "test_auroc" else "mean over outside sets"
    return Plot(measure, f"AUROC by detector, {where}", "", "AUROC", tuple(series), kind="bar")

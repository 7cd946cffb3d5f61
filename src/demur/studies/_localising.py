"""Where a model's refusals are made: over-refusal with the weights of a range of blocks scaled.

A block that makes refusals makes more of them when its weights are larger, so that harmless
look-alikes get refused; another block dilutes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demur.core.examples import Example
from demur.core.outcomes import Answered, Scorer
from demur.core.readings import Array
from demur.engines.transformers import TransformersEngine
from demur.metrics.wilson_interval import wilson_interval
from demur.modeling.block_search import Range, Search, narrow
from demur.modeling.likelihood import Likelihood
from demur.modeling.load import LoadedModel
from demur.modeling.scaling import scaled
from demur.studies._arms import paired_change
from demur.studies._replies import replies
from demur.studies._study import Cell, Plot, Series, StudyInputs

COLUMNS = (
    "searched", "refused", "refused_low", "refused_high", "change", "change_low", "change_high",
    "nll_ordinary",
)  # fmt: skip
MAX_BATCH = 16


@dataclass(frozen=True)
class Localiser:
    """Answers prompts with some blocks scaled.

    Args:
        loaded: The model; it is never changed.
        factor: By which weights are multiplied, over 0.
        num_tokens: Of a reply.
        labeller: Says whether a reply refuses.
        inputs: Is told of progress.
    """

    loaded: LoadedModel
    factor: float
    num_tokens: int
    labeller: Scorer
    inputs: StudyInputs

    def search(self, start: Range, examples: Sequence[Example], *, reach: int) -> Search:
        """Return the range that makes the model refuse most prompts when it is scaled.

        Args:
            start: A first guess.
            examples: Harmless prompts that look dangerous.
            reach: Blocks by which an end is moved at most.
        """
        return narrow(
            start,
            num_blocks=len(self.loaded.parts.blocks),
            reach=reach,
            count=lambda of: float(self.refused(examples, of).sum()),
        )

    def refused(self, examples: Sequence[Example], scaled_range: Range | None) -> Array:
        """Return which prompts are refused with a range scaled, or none, [prompt]."""
        answered = self._answered(examples, scaled_range)
        found = np.array([of.outcome == "refused" for of in self.labeller.judge(answered)])
        self.inputs.report(f"blocks {scaled_range or 'as they are'}: {found.sum()} refused")
        return found

    def surprise(self, examples: Sequence[Example], ranges: Sequence[Range]) -> list[float | None]:
        """Return the mean NLL a token of the model's own replies under each range, in nats.

        The first one is that of the model as it is; None where it says nothing to any prompt.
        """
        said = [of for of in self._answered(examples, None) if of.reply.strip()]
        if not said:
            return [None] * (1 + len(ranges))
        models = [self.loaded, *(scaled(self.loaded, of.layers, self.factor) for of in ranges)]
        return [_nll(model, said) for model in models]

    def _answered(self, examples: Sequence[Example], scaled_range: Range | None) -> list[Answered]:
        model = self.loaded
        if scaled_range is not None:
            model = scaled(model, scaled_range.layers, self.factor)
        engine = TransformersEngine(model, max_batch=MAX_BATCH)
        texts = replies(engine, examples, num_tokens=self.num_tokens)
        return [Answered(example.chat, text) for example, text in zip(examples, texts, strict=True)]


@dataclass(frozen=True, eq=False)
class Localised:
    """What scaling does on prompts that the search has not seen."""

    search: Search
    randoms: tuple[Range, ...]
    """Of the width of the range that was chosen."""
    refused: Mapping[Range | None, Array]
    """[prompt]; None is the model as it is."""
    nll: Mapping[Range | None, float | None]
    group: Array
    """[prompt]."""

    def cells(self, of: Range | None) -> dict[str, Cell]:
        """Return what the table says of a range."""
        cells: dict[str, Cell] = dict.fromkeys(COLUMNS)
        if of is not None:
            cells["searched"] = self.search.counts.get(of)
        if of not in self.refused:
            return cells
        hits = self.refused[of]
        low, high = wilson_interval(hits, self.group) or (None, None)
        cells |= {"refused": float(hits.mean()), "refused_low": low, "refused_high": high}
        cells["nll_ordinary"] = self.nll[of]
        if of is not None:
            change, ends = self.change(of, None)
            cells |= {"change": change, "change_low": ends[0], "change_high": ends[1]}
        return cells

    def change(self, of: Range, other: Range | None) -> tuple[float, tuple[float, float]]:
        """Return how much more is refused under a range than under another one, with its ends."""
        return paired_change(self.refused[of], self.refused[other], self.group)

    def over_random(self) -> tuple[float, tuple[float, float]] | None:
        """Return how much more is refused than under the random ranges, on average."""
        if not self.randoms:
            return None
        at_random = np.mean([self.refused[of] for of in self.randoms], axis=0)
        chosen: Array = self.refused[self.search.chosen].astype(float)
        return paired_change(chosen, at_random, self.group)

    def findings(self) -> list[str]:
        """Say what scaling does, and whether the place matters."""
        chosen = self.search.chosen
        change, ends = self.change(chosen, None)
        refused, before = (f"{self.refused[of].mean():.1%}" for of in (chosen, None))
        words = [
            f"Blocks {chosen}, chosen of {len(self.search.counts)} ranges on other prompts, when "
            f"scaled: {refused} of {len(self.group)} look-alikes are refused, {before} as it is "
            f"({_points(change, ends)}); ordinary replies {_nats(self.nll[chosen])} against "
            f"{_nats(self.nll[None])}."
        ]
        over = self.over_random()
        if over is None:
            return words
        shares = ", ".join(f"{of} {self.refused[of].mean():.1%}" for of in self.randoms)
        verdict = (
            "the place matters"
            if over[1][0] > 0
            else "the place does not matter here by more than chance explains"
        )
        return [
            *words,
            f"Random blocks of the same width refuse {shares}; the chosen ones "
            f"{_points(*over)} against their mean: {verdict}.",
        ]

    def plot(self) -> Plot:
        """Return the refusals of each range that was searched."""
        names = tuple(str(of) for of in self.search.counts)
        return Plot(
            "scaling",
            "Look-alikes refused with a range of blocks scaled",
            "blocks",
            "prompts",
            (Series("searched", names, tuple(self.search.counts.values())),),
            kind="bar",
        )


def _nll(model: LoadedModel, said: Sequence[Answered]) -> float:
    likelihood = Likelihood(model)
    found = [likelihood.log_probs(of.chat, [of.reply])[0] for of in said]
    return -float(np.concatenate(found).mean())


def _points(change: float, ends: tuple[float, float]) -> str:
    low, high = (100 * end for end in ends)
    return f"{100 * change:+.1f} points ({low:+.1f} to {high:+.1f})"


def _nats(nll: float | None) -> str:
    return "unknown" if nll is None else f"{nll:.2f} nats a token"

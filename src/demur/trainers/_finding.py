"""Finds the blocks that a model's refusals depend on, without drawing a token.

A first guess is where the gap between unsafe and safe prompts of like shape grows; its ends are
moved to where scaled weights make harmless look-alikes likeliest to be refused.

Paper: Li et al., Safety Layers in Aligned Large Language Models (ICLR 2025), arXiv 2408.17003.

Differs: in place of refusals among greedy replies, how many would be refused by the log-odds of
what a reply opens with, which takes one prefill a prompt. The openings are English.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.reads import CaptureSpec
from demur.core.training import Progress, Run, silent
from demur.modeling.block_search import Range, Search, first_guess, narrow
from demur.modeling.chat import ChatRenderer
from demur.modeling.gap_curves import MOST_BY_CHANCE, Cosines, Rise, chance_of, rise_of
from demur.modeling.load import LoadedModel
from demur.modeling.scaling import scaled
from demur.trainers._anchors import pick_anchors
from demur.trainers._last_states import states_of
from demur.trainers._measuring import measure

NUM_SHUFFLES = 200


@dataclass(frozen=True)
class Finder:
    """How the blocks are looked for."""

    factor: float
    """By which weights are multiplied, over 1."""
    reach: int
    """Blocks by which an end of the range is moved at most."""
    num_pairs: int
    """Of an unsafe and a safe prompt, at most."""
    num_lookalikes: int
    """Harmless prompts that sound dangerous, at most."""

    def find(self, loaded: LoadedModel, examples: Sequence[Example], run: Run) -> Range:
        """Return the blocks.

        Args:
            loaded: The model; it is never changed.
            examples: Labelled prompts, with look-alikes in English among them.
            run: The seed, and who is told of progress.

        Raises:
            DataError: There are no two groups of prompts of each label; or the gap is no larger
                than chance explains and there are no look-alikes, so that nothing tells the blocks.
        """
        num_blocks = len(loaded.parts.blocks)
        rise = self._rise(loaded, examples, run)
        start = first_guess(rise, num_blocks=num_blocks)
        lookalikes = self._lookalikes(examples, run.seed)
        if lookalikes:
            return self._search(loaded, start, lookalikes, run).chosen
        if rise is None:
            raise DataError(
                "the safety layers cannot be found: unsafe and safe prompts are no further apart "
                "than chance explains, and no safe prompt is a look-alike: add --data written, or "
                "name the blocks with protects=FROM-TO"
            )
        return start

    def _rise(self, loaded: LoadedModel, examples: Sequence[Example], run: Run) -> Rise | None:
        """Return where the gap grows; None if it does not, or by chance only."""
        renderer = ChatRenderer.of(loaded)
        anchors = pick_anchors(examples, renderer, count=self.num_pairs, seed=run.seed)
        spec = CaptureSpec(tuple(range(len(loaded.parts.blocks))))
        prompts = [*anchors.safe, *anchors.unsafe]
        states = states_of(loaded, prompts, spec, stage="pairs", run=run)
        cosines = Cosines(states, np.arange(len(prompts)) >= len(anchors), against="both")
        gap = cosines.curves().gap
        shuffled = np.stack([of.gap for of in cosines.permuted(NUM_SHUFFLES, seed=run.seed)])
        return rise_of(gap) if chance_of(gap, shuffled) <= MOST_BY_CHANCE else None

    def _lookalikes(self, examples: Sequence[Example], seed: int) -> list[Example]:
        found = [of for of in examples if of.is_look_alike and of.language in (None, "en")]
        order = np.random.default_rng(seed).permutation(len(found))
        return [found[row] for row in order[: self.num_lookalikes]]

    def _search(
        self, loaded: LoadedModel, start: Range, lookalikes: Sequence[Example], run: Run
    ) -> Search:
        num_blocks = len(loaded.parts.blocks)
        most = 2 * (2 * self.reach + 1) - 1
        num_tried = 0

        def count(of: Range) -> float:
            nonlocal num_tried
            found = measure(
                scaled(loaded, of.layers, self.factor), lookalikes, [None], report=silent
            )
            num_tried += 1
            run.report(Progress("scaled ranges", num_tried, most))
            return float(expit(-found.log_odds).sum())

        found = narrow(start, num_blocks=num_blocks, reach=self.reach, count=count)
        run.report(Progress("scaled ranges", most, most))
        return found

"""What an adapter costs where nothing is wrong, always on and routed, and whether that can be told.

Exams and school mathematics are answered by likelihood (`benchmarks.utility`); beside them stands
the perplexity of the model's own replies to ordinary prompts. Routing can only be credited with
sparing a loss where there is one: an exam counts if the model by itself is over chance, and if the
adapter, always on, loses some of that. Of all others it is tested whether they are the same.

Paper: Schuirmann (1987), J. Pharmacokinetics and Biopharmaceutics 15: two one-sided tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.arms import Arms
from benchmarks.kept_numbers import KeptNumbers
from benchmarks.two_step_claims import ALWAYS, BASE, ROUTED, Hits, loss_of
from benchmarks.two_step_rows import Cells
from benchmarks.utility import Measured, Question, chosen, exam_questions, measured, row_of, sums
from demur.core.protocols import Responder
from demur.core.readings import Array
from demur.datasets.demur_data import DemurData
from demur.guard.kept_replies import digest_of, key_of
from demur.guard.responding import load_responder
from demur.modeling.gguf import cache_folder

NUM_QUESTIONS, NUM_REPLIES = 300, 100
"""Of a set; 299 without a difference are the fewest that show two arms to be the same."""
OWN_REPLIES = "own replies"
OVER_CHANCE = 0.10
"""By which the model is right more often than chance, or an exam says nothing."""
LEAST_LOSS = 0.03
"""Of right answers, that the adapter always on has to lose, or there is nothing to spare."""
MARGIN = 0.01
"""Within which two arms count as the same: a point of right answers, a hundredth of perplexity."""
LEVEL = 0.05


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of a mean difference against a margin on each side."""

    mean: float
    low: float
    high: float
    """Of the 90% interval: within the margin exactly where the tests say so."""
    p: float
    """The larger one of the two tests'."""

    @property
    def holds(self) -> bool:
        """Whether the two are the same, but for less than the margin."""
        return self.p < LEVEL


def equivalence(difference: Array, group: Array, *, margin: float = MARGIN) -> Equivalence:
    """Test whether a mean difference is within a margin.

    Where no row differs there is no variance to go by. Then p is the chance of that if a share of
    groups as large as the margin differed: (1 - margin) to the power of their number.

    Args:
        difference: Paired, [row].
        group: [row]; the variance is that between groups; of one group nothing can be said.
        margin: Over 0.
    """
    mean, number = float(difference.mean()), len(difference)
    _, place = np.unique(group, return_inverse=True)
    sums_of_groups = np.bincount(place, difference - mean)
    freedom = len(sums_of_groups) - 1
    if not freedom:
        return Equivalence(mean, -np.inf, np.inf, 1.0)
    variance = (freedom + 1) / freedom * float((sums_of_groups**2).sum())
    error = float(np.sqrt(variance)) / number
    if error == 0:
        chance = (1 - margin) ** (freedom + 1) if abs(mean) < margin else 1.0
        unseen = 1 - LEVEL ** (1 / (freedom + 1))
        return Equivalence(mean, mean - unseen, mean + unseen, chance)
    reach = float(student.ppf(1 - LEVEL, freedom)) * error
    p = max(
        float(student.sf((mean + margin) / error, freedom)),
        float(student.cdf((mean - margin) / error, freedom)),
    )
    return Equivalence(mean, mean - reach, mean + reach, p)


@dataclass(frozen=True)
class UtilitySets:
    """Questions by set, and which of each the detector flags."""

    arms: Arms
    questions: Mapping[str, Sequence[Question]]
    flagged: Mapping[str, Array]

    @classmethod
    def read(cls, arms: Arms, cells: Cells, data: DemurData, *, share: float) -> "UtilitySets":
        """Read questions, and let the detector score them.

        Args:
            arms: The model.
            cells: The prompts, of which the ordinary ones are replied to.
            data: The collection.
            share: Of the questions, over 0 to 1.
        """
        found = {
            name: chosen(every, min(1.0, share * NUM_QUESTIONS / len(every)))
            for name, every in (("mmlu_500", exam_questions(data)), ("gsm8k_test", sums(data)))
        }
        rows = cells.cases.rows("ordinary")[: max(2, round(share * NUM_REPLIES))]
        found[OWN_REPLIES] = [
            Question(OWN_REPLIES, cells.cases.examples[int(row)].chat, (reply.text,), 0)
            for row, reply in zip(rows, arms.base_replies(rows), strict=True)
            if reply.text.strip()
        ]
        found = {name: of for name, of in found.items() if of}
        flagged = {
            name: margins_of(arms, [question.chat for question in of])[:, 0] >= 0
            for name, of in found.items()
        }
        return cls(arms, found, flagged)

    def measured(self, line: str | None) -> dict[str, Measured]:
        """Return what the model makes of every set, by itself or under a responder's line."""
        model_id = self.arms.engine.model_id
        responder = None if line is None else load_responder(line, model_id)
        depends_on = {"model": model_id.as_dict(), "responder": repr(responder)}
        kept = KeptNumbers(_root() / f"utility-{digest_of(depends_on)}.json")
        return {name: self._measured(of, responder, kept) for name, of in self.questions.items()}

    def _measured(
        self, of: Sequence[Question], responder: Responder | None, kept: KeptNumbers
    ) -> Measured:
        def measure(places: list[int]) -> list[tuple[float, float]]:
            found = measured(self.arms.engine, [of[place] for place in places], responder)
            return list(zip(found.is_right.tolist(), found.nats.tolist(), strict=True))

        keys = [
            digest_of({"chat": key_of(q.chat), "options": q.options, "right": q.right}) for q in of
        ]
        numbers = kept.of(keys, measure)
        return Measured(numbers[:, 0] > 0, numbers[:, 1])


def margins_of(arms: Arms, chats: Sequence[Any]) -> Array:
    """Return how far chats score over the detector's threshold, [chat, 1], kept on disk."""
    depends_on = {
        "model": arms.engine.model_id.as_dict(),
        "detector": [arms.gate.version, arms.gate.threshold],
    }
    kept = KeptNumbers(_root() / f"margins-{digest_of(depends_on)}.json")

    def measure(places: list[int]) -> list[tuple[float]]:
        found = arms.answers.margins([chats[place] for place in places])
        return [(margin,) for margin in found.tolist()]

    return kept.of([key_of(chat) for chat in chats], measure)


def _root() -> Any:
    return cache_folder() / "benchmarks" / "two_step"


def compared(
    sets: UtilitySets, base: Mapping[str, Measured], always: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return by set the rows of all arms, whether it counts, and what follows.

    Args:
        sets: The questions.
        base: Of the model by itself, by set.
        always: Of an adapter that is always on.
    """
    return {
        name: of_set(questions, base[name], always[name], sets.flagged[name])
        for name, questions in sets.questions.items()
    }


def of_set(
    questions: Sequence[Question], base: Measured, always: Measured, flagged: Array
) -> dict[str, Any]:
    """Return what is said of one set."""
    routed = base.where(flagged, always)
    rows = [
        row_of(name, questions, of, base)
        for name, of in ((BASE, base), (ALWAYS, always), (ROUTED, routed))
    ]
    group = np.arange(len(questions))
    has_choice = "right" in rows[0]
    found: dict[str, Any] = {
        "rows": rows,
        "flag_rate": float(flagged.mean()),
        "counts": has_choice and _counts(rows),
    }
    if found["counts"]:
        found["loss"] = loss_of(Hits(~base.is_right, ~always.is_right, flagged, group))
        return found
    found["equivalence"] = {
        name: _as_dict(
            equivalence(
                of.is_right.astype(float) - base.is_right if has_choice else of.nats - base.nats,
                group,
            )
        )
        for name, of in ((ALWAYS, always), (ROUTED, routed))
    }
    return found


def _counts(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the model knows something here, and the adapter loses some of it."""
    base, always, _ = rows
    is_known = base["right"] >= base["chance"] + OVER_CHANCE
    return bool(
        is_known and always["right_change"] <= -LEAST_LOSS and always["right_change_high"] < 0
    )


def _as_dict(of: Equivalence) -> dict[str, Any]:
    return {"mean": of.mean, "interval": (of.low, of.high), "p": of.p, "holds": of.holds}

"""An alarm for traffic that is no longer like the calibration set.

It bets against two claims: that benign prompts are flagged at no more than the promised rate, and
that live scores are drawn as the calibration scores were. Each bet is fair or worse while its claim
holds, so that the money won is evidence: it ever reaches 1 / alpha with a probability of at most
alpha, however long the stream. Memory and time of a prompt do not grow.
"""

import math
from collections.abc import Sequence

import numpy as np

from demur.core.artifacts import Calibration
from demur.core.errors import ConfigError, DataError
from demur.core.readings import Array

MAX_REFERENCE = 512
POWERS = (0.25, 0.5, 0.75)
"""Of the bets on p-values; a lower power stakes more on extreme ones."""
STEPS = (0.15, 0.3, 0.5, 0.7)
"""Rates that are bet on: 1% in steps of 0.15, 0.3, 0.5 and 0.7 to certainty, as exponents."""
SHARE = 1e-4
"""Of the money that is spread anew before each bet, so that no bettor is ever broke."""


def kept_ranks(num_scores: int) -> Array:
    """Return the ranks, from 0, of the order statistics that are kept of sorted scores."""
    kept = np.linspace(0, num_scores - 1, min(num_scores, MAX_REFERENCE))
    return np.unique(kept.round().astype(np.int64))


class Bettors:
    """Money that is staked in several ways at once: a test martingale.

    Paper: V. Vovk et al., Retrain or not retrain: Conformal test martingales for change-point
        detection (2021, arXiv 2102.10439), section 3: a share moves between the bets at each step.
    Differs: The first bettor keeps its money; the bets are given with each step.

    Args:
        num_bets: Ways of betting, beside keeping the money.
    """

    def __init__(self, num_bets: int) -> None:
        self._shares: Array = np.full(num_bets + 1, 1 / (num_bets + 1))
        self.log_evidence = 0.0
        """Logarithm of the money that a stake of 1 has become."""

    def bet(self, factors: Array) -> None:
        """Multiply each bettor's money, but the first one's, by its factor [bet]."""
        spread = (1 - SHARE) * self._shares + SHARE / len(self._shares)
        grown = spread * np.concatenate([[1.0], factors])
        gain = float(grown.sum())
        self._shares = grown / gain
        self.log_evidence += math.log(gain)


class DriftAlarm:
    """Watches the scores of live prompts, one at a time.

    A false alarm, at any time of an endless stream, has a probability of at most `alpha` as long as
    prompts are independent and the threshold keeps its rate. The bets on scores are fair exactly
    for scores without ties: a new score falls between two neighbouring calibration scores with a
    probability that Polya's urn gives. A prompt that comes again and again is no independent
    evidence: give it once.

    Paper: V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World (2005),
        chapter 7, power martingales; V. Vovk and R. Wang, E-values (2021, arXiv 1912.06116): the
        mean of both sorts of evidence is evidence.
    Differs: The calibration set is thinned to at most 512 order statistics; the urn stays exact,
        since the weight of a gap is the number of spacings in it.

    Args:
        calibration: With the threshold and the calibration scores.
        fpr: The rate of the threshold; None is the default one.
        alpha: The probability of a false alarm, between 0 and 1.
        unsafe_share: Of live prompts, at most: they may all be flagged. Over 0, only flags are
            watched, since the scores are then expected to differ from benign ones.
        seed: Breaks ties.

    Raises:
        ConfigError: A number is out of range, or the rate was not calibrated.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        fpr: float | None = None,
        alpha: float = 0.01,
        unsafe_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha is {alpha}: expected more than 0, less than 1")
        if not 0 <= unsafe_share < 1:
            raise ConfigError(f"unsafe_share is {unsafe_share}: expected 0 or more, less than 1")
        rate = calibration.default_fpr if fpr is None else fpr
        self._threshold = calibration.at(rate).threshold
        self._log_limit = -math.log(alpha)
        self._flags = _FlagRate(unsafe_share + (1 - unsafe_share) * rate)
        watches_scores = bool(calibration.reference) and unsafe_share == 0
        self._scores = (
            _ScoreShift(calibration.reference, calibration.num_reference, seed)
            if watches_scores
            else None
        )
        self.is_raised = False
        """True from the first prompt on at which the evidence reached 1 / alpha."""
        self.num_prompts = 0

    @property
    def flag_evidence(self) -> float:
        """Logarithm of the evidence that more prompts are flagged than was promised."""
        return self._flags.bettors.log_evidence

    @property
    def score_evidence(self) -> float | None:
        """Logarithm of the evidence that scores differ from calibration; None if not watched."""
        return None if self._scores is None else self._scores.bettors.log_evidence

    @property
    def evidence(self) -> float:
        """Logarithm of all evidence: of the mean of both sorts."""
        if self.score_evidence is None:
            return self.flag_evidence
        return float(np.logaddexp(self.flag_evidence, self.score_evidence)) - math.log(2)

    def update(self, score: float) -> bool:
        """Take a live prompt's score; return whether the alarm is raised.

        Raises:
            DataError: The score is not finite.
        """
        if not math.isfinite(score):
            raise DataError(f"the score is {score}: expected a finite number")
        self.num_prompts += 1
        self._flags.update(is_flagged=score >= self._threshold)
        if self._scores is not None:
            self._scores.update(score)
        self.is_raised = self.is_raised or self.evidence >= self._log_limit
        return self.is_raised


class _FlagRate:
    """Bets that flags are more frequent than a rate: likelihood ratios of higher rates."""

    def __init__(self, rate: float) -> None:
        higher = rate ** (1 - np.array(STEPS))
        self._if_flagged: Array = higher / rate
        self._if_passed: Array = (1 - higher) / (1 - rate)
        self.bettors = Bettors(len(STEPS))

    def update(self, *, is_flagged: bool) -> None:
        """Take one prompt."""
        self.bettors.bet(self._if_flagged if is_flagged else self._if_passed)


class _ScoreShift:
    """Bets that p-values of scores against the calibration scores are not uniform."""

    def __init__(self, reference: Sequence[float], num_reference: int, seed: int) -> None:
        ranks = kept_ranks(num_reference)
        if len(ranks) != len(reference):
            raise DataError(
                f"the calibration keeps {len(reference)} of {num_reference} scores, expected "
                f"{len(ranks)}: calibrate again"
            )
        self._reference = np.asarray(reference)
        # Spacings of the sorted calibration scores between those kept, and both open ends.
        self._weights: Array = np.diff(np.concatenate([[-1], ranks, [num_reference]]))
        self._generator = np.random.default_rng(seed)
        self.bettors = Bettors(2 * len(POWERS))

    def update(self, score: float) -> None:
        """Take one prompt."""
        p = np.clip(self._p_value(score), 1e-12, 1 - 1e-12)
        powers = np.array(POWERS)
        self.bettors.bet(np.concatenate([powers * q ** (powers - 1) for q in (p, 1 - p)]))

    def _p_value(self, score: float) -> float:
        """Return where a score stands among all before it, and count it; low is high up."""
        first = int(np.searchsorted(self._reference, score, side="left"))
        last = int(np.searchsorted(self._reference, score, side="right"))
        own = self._weights[first : last + 1]  # one gap, or all between equal scores
        depth = float(self._generator.random() * own.sum())
        p = (float(self._weights[last + 1 :].sum()) + depth) / float(self._weights.sum())
        chosen = int(np.searchsorted(np.cumsum(own[::-1]), depth))
        self._weights[last - min(chosen, len(own) - 1)] += 1
        return p

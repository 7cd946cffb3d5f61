"""What the rates of outcomes share."""

import numpy as np

from demur.core.errors import DataError
from demur.core.outcomes import OUTCOMES, Outcome
from demur.core.rates import OutcomeRate
from demur.core.readings import Array
from demur.core.validation import Asked, ValidatedLabeller, rate_name
from demur.metrics.wilson_interval import wilson_interval


def outcome_rate(
    outcomes: Array,
    counted: Outcome,
    *,
    group: Array,
    labeller: ValidatedLabeller | None,
    asked: Asked,
) -> OutcomeRate:
    """Return the share of replies with an outcome, under the name that the labeller allows.

    Raises:
        DataError: A word is no outcome, or the groups are not as many.
    """
    if len(outcomes) != len(group):
        raise DataError(f"{len(outcomes)} outcomes with {len(group)} groups: expected as many")
    unknown = sorted(set(np.unique(outcomes).tolist()) - set(OUTCOMES))
    if unknown:
        raise DataError(f"outcomes hold {unknown}: expected some of {OUTCOMES}")
    hits, unclear = outcomes == counted, outcomes == "unclear"
    return OutcomeRate(
        name=rate_name(labeller, asked),
        rate=float(hits.mean()) if len(hits) else None,
        interval=wilson_interval(hits, group),
        highest=float((hits | unclear).mean()) if len(hits) else None,
        unclear=float(unclear.mean()) if len(hits) else None,
        num_replies=len(hits),
    )

"""From readings to a route, where every error is a refusal: what all guards decide with."""

from collections.abc import Collection, Sequence
from typing import Literal

from demur.core.errors import ConfigError, DataError
from demur.core.readings import Readings
from demur.core.results import PASS, PASS_UNSCORED, Verdict
from demur.guard.calibrated import CalibratedDetector
from demur.guard.routes import Route

OnError = Literal["refuse", "raise", "pass_unscored"]


def verdict_on(
    detector: CalibratedDetector,
    readings: Readings,
    *,
    has_forged_markers: bool = False,
    raises: bool = False,
) -> Verdict:
    """Return a detector's verdict on one prompt; one that it cannot score is flagged.

    Args:
        detector: Judges.
        readings: Of one prompt.
        has_forged_markers: What the verdict says of the prompt.
        raises: Raise what goes wrong.

    Raises:
        DataError: The prompt could not be scored, with `raises`.
    """
    try:
        (verdict,) = detector.verdicts(readings, has_forged_markers=has_forged_markers)
    except Exception as error:  # also a programming error must never let a prompt pass
        message = (
            f"detector {detector.name!r} could not score the prompt: "
            f"{type(error).__name__}: {error}"
        )
        if raises:
            raise DataError(message) from error
        return detector.unscored(message, has_forged_markers=has_forged_markers)
    return verdict


def chosen_route(
    verdicts: Sequence[Verdict], route: Route, responders: Collection[str], *, on_error: OnError
) -> str:
    """Return who answers; detectors that failed have no say in it.

    Args:
        verdicts: Of all detectors.
        route: Chooses.
        responders: The names that it may return besides `pass`.
        on_error: `pass_unscored` lets the other detectors decide.

    Raises:
        ConfigError: The route returned another name.
        DataError: A detector failed, and that is not to be passed over.
    """
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    if errors and on_error != PASS_UNSCORED:
        raise DataError("; ".join(errors))
    scored = [verdict for verdict in verdicts if verdict.error is None]
    found = route(scored) if scored else PASS
    if found == PASS:
        return PASS_UNSCORED if errors else PASS
    if found not in responders:
        raise ConfigError(
            f"the route names {found!r}: expected {PASS!r} or one of {sorted(responders)}"
        )
    return found

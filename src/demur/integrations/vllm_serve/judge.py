"""Judges prompts in vLLM's worker, and keeps what it said until the API process asks for it."""

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.results import ERROR, PASS, PASS_UNSCORED, Verdict
from demur.engines._columns import Columns
from demur.guard.calibrated import CalibratedDetector
from demur.guard.deciding import chosen_route, verdict_on
from demur.guard.packaged import FALLBACK
from demur.guard.routes import FlaggedTo
from demur.integrations.vllm_serve.policy import (
    ANSWER,
    ANSWERING_AGAIN,
    OBSERVE,
    SCORE,
    flagged_route,
    policy_of,
)
from demur.serving.settings import Settings
from demur.serving.verdicts import GuardReport, detector_verdict

log = logging.getLogger("vllm.demur")

CAN_AGAIN = "can_again"
"""In a statement: another request is to answer the prompt, should it be flagged."""
MOST_KEPT = 10_000
"""Reports that nobody has asked for; older ones are let go of."""


class Judge:
    """Decides what becomes of prompts.

    It refuses everything until it is opened, but for requests that are only scored: those are the
    self-test.

    Args:
        detectors: Calibrated, and linear.
        columns: What the model computes for them.
        settings: Of guard.toml.
        reply_ids: Tokens of what flagged prompts are told; none ends the reply at once.
        logs: Write a line for each prompt.
    """

    def __init__(
        self,
        detectors: Sequence[CalibratedDetector],
        columns: Columns,
        settings: Settings,
        *,
        reply_ids: Sequence[int],
        logs: bool = True,
    ) -> None:
        self._detectors = tuple(detectors)
        self._versions = {of.name: of.version for of in detectors}
        self._columns = columns
        self._settings = settings
        self._route = FlaggedTo(flagged_route(settings))
        self._reply_ids = tuple(reply_ids)
        self._logs = logs
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._again: OrderedDict[str, None] = OrderedDict()
        self.is_open = False
        """The self-test has passed."""

    def __call__(self, extra: dict[str, Any], found: Array | Exception) -> tuple[int, ...] | None:
        """Judge a prompt.

        Args:
            extra: The statement of the API process on it; empty if there is none.
            found: The columns [column], or why there are none.

        Returns:
            The tokens that take the reply's place; None lets vLLM draw.
        """
        policy = extra.get("policy") or policy_of(None, self._settings)
        if policy == ANSWER:
            return None if self.is_open else ()
        verdicts = self._verdicts(found, has_forged_markers=bool(extra.get("forged")))
        route, why = self._chosen(verdicts)
        if route in ANSWERING_AGAIN and not extra.get(CAN_AGAIN):
            route = FALLBACK
        would_route = None
        forced: tuple[int, ...] | None = None
        if not self.is_open and policy != SCORE:
            route, why, forced = ERROR, "the self-test has not passed", ()
        elif policy == OBSERVE:
            would_route, route = route, PASS_UNSCORED if why else PASS
        elif route == ERROR or policy == SCORE:
            forced = ()
        elif route in ANSWERING_AGAIN:
            forced = ()
            _add(self._again, extra["id"], None)
        elif route not in (PASS, PASS_UNSCORED):
            forced = self._reply_ids
        report = GuardReport(
            route=route,
            flagged=any(verdict.flagged for verdict in verdicts),
            would_route=would_route,
            prompt_scanned=all(verdict.error is None for verdict in verdicts),
            replies_watched=False,
            verdicts=[detector_verdict(of, self._versions[of.detector]) for of in verdicts],
        )
        self._keep(extra, report)
        if self._logs:
            _write(extra, report, policy, why)
        return forced

    def _verdicts(
        self, found: Array | Exception, *, has_forged_markers: bool
    ) -> tuple[Verdict, ...]:
        return tuple(
            self._verdict(of, found, has_forged_markers=has_forged_markers)
            for of in self._detectors
        )

    def _verdict(
        self, of: CalibratedDetector, found: Array | Exception, *, has_forged_markers: bool
    ) -> Verdict:
        try:
            if isinstance(found, Exception):
                raise found
            specs = [read for read in of.detector.reads if isinstance(read, CaptureSpec)]
            readings = Readings({spec: self._columns.state(spec, found)[None] for spec in specs})
        except Exception as error:  # one prompt's failure must not end the step of all
            return of.unscored(str(error), has_forged_markers=has_forged_markers)
        return verdict_on(of, readings, has_forged_markers=has_forged_markers)

    def _chosen(self, verdicts: Sequence[Verdict]) -> tuple[str, str]:
        """Return the route, and why there is no score."""
        why = "; ".join(verdict.error for verdict in verdicts if verdict.error is not None)
        try:
            route = chosen_route(
                verdicts,
                self._route,
                self._route.responders,
                on_error=self._settings.on_error,
            )
        except Exception as error:  # whatever it is, it lets nothing pass
            return ERROR, why or str(error)
        return route, why

    def _keep(self, extra: dict[str, Any], report: GuardReport) -> None:
        if "id" in extra:
            _add(self._kept, extra["id"], report.model_dump())

    def take(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the reports on prompts, and forget them; those that were not judged are left out.

        Args:
            ids: From the statements on them.
        """
        return {id: self._kept.pop(id) for id in ids if id in self._kept}

    def take_again(self, id: str) -> bool:
        """Tell once whether another request is to answer a prompt.

        Args:
            id: From the statement on it.
        """
        is_flagged = id in self._again
        self._again.pop(id, None)
        return is_flagged


def _add(kept: OrderedDict[str, Any], id: str, value: Any) -> None:
    kept[id] = value
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)


def _write(extra: dict[str, Any], report: GuardReport, policy: str, why: str) -> None:
    """Write a line of JSON without any text of the prompt."""
    line = {
        "event": "demur.judged",
        "request": extra.get("request"),
        "route": report.route,
        "would_route": report.would_route,
        "policy": policy,
        "flagged": report.flagged,
        "is_sealed": "id" in extra,
        "verdicts": [
            {
                "detector": f"{verdict.detector}@{verdict.version}",
                "score": verdict.score,
                "probability": verdict.probability,
                "threshold": verdict.threshold,
                "flagged": verdict.flagged,
            }
            for verdict in report.verdicts
        ],
    }
    if why:
        line["error"] = why
    log.log(logging.ERROR if why else logging.INFO, "%s", json.dumps(line))

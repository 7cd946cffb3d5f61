"""Writes the audit log for the endpoints, off the event loop, and says what a full disk means.

A record that cannot be written is kept and written first when the next request comes. With
`on_failure = "refuse"` that next request is refused until then, so that few records ever wait.
"""

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import Sequence

from demur.core.errors import DemurError
from demur.core.results import ERROR, PASS, PASS_UNSCORED, STOPPED
from demur.guard import Guard
from demur.guard.exchange import Exchange
from demur.serving.audit import Action, AuditError, AuditLog, AuditRecord, AuditVerdict
from demur.serving.errors import ApiError
from demur.serving.settings import AuditSettings

log = logging.getLogger(__name__)

BLOCK, REFUSE = "block", "refuse"
"""Routes of flagged prompts that no responder answers."""
MODERATIONS = "/v1/moderations"
DAY_S = 24 * 60 * 60
_ACTIONS: dict[str, Action] = {
    ERROR: "error", STOPPED: "stopped", BLOCK: "blocked", REFUSE: "refused",
}  # fmt: skip


class Records:
    """The audit log of a server, or none.

    Args:
        settings: Of the log.

    Raises:
        ConfigError: The log cannot be opened.
        AuditError: Its first line cannot be written.
    """

    def __init__(self, settings: AuditSettings) -> None:
        self._settings = settings
        self._log: AuditLog | None = None
        self._pending: deque[AuditRecord] = deque()
        self._writing = threading.Lock()
        """Held to write what is pending: each record once, in order."""
        if settings.path is not None:
            self._log = AuditLog(
                settings.path,
                keep_text=settings.keep_text,
                retention_days=settings.retention_days,
                fsync=settings.fsync,
            )

    @property
    def head(self) -> str | None:
        """The hash of the newest line; kept elsewhere, it proves all lines up to it."""
        return None if self._log is None else self._log.head.hash

    async def require_writable(self) -> None:
        """Write what could not be written before.

        Raises:
            ApiError: 503, if that fails again and requests are refused then.
        """
        if self._pending:
            await self._flush()

    async def write(self, record: AuditRecord) -> None:
        """Write a record.

        Raises:
            ApiError: 503, if that fails and requests are refused then.
        """
        if self._log is not None:
            self._pending.append(record)
            await self._flush()

    async def _flush(self) -> None:
        try:
            await asyncio.to_thread(self._write_pending)
        except AuditError as error:
            raise ApiError(
                503,
                "the audit log cannot be written, and nothing is answered without it",
                type="server_error",
                code="not_recorded",
            ) from error

    def _write_pending(self) -> None:
        """Write what is pending, or drop it, if requests are answered without it.

        Raises:
            AuditError: It cannot be written, and requests are refused then.
        """
        assert self._log is not None, "nothing is pending without a log"
        with self._writing:
            while self._pending:
                try:
                    self._log.write(self._pending[0])
                except AuditError as error:
                    log.error("the audit log cannot be written: %s", error)
                    if self._settings.on_failure == "refuse":
                        raise
                self._pending.popleft()

    async def keep_pruned(self) -> None:
        """Remove texts whose time is over, now and every day, for as long as the server runs."""
        while self._log is not None and self._settings.keep_text:
            try:
                await asyncio.to_thread(self._log.prune)
            except DemurError as error:
                log.error("texts could not be removed from the audit log: %s", error)
            await asyncio.sleep(DAY_S)

    async def close(self) -> None:
        """Write the last line and let go of the file."""
        if self._log is not None:
            await asyncio.to_thread(self._log.close)


def record_of(
    exchange: Exchange,
    guard: Guard,
    *,
    endpoint: str,
    model: str,
    identifier: str | None,
    unscanned: Sequence[str] = (),
) -> AuditRecord:
    """Return the record of an exchange, complete or given up.

    Args:
        exchange: What became of one prompt.
        guard: That judged it.
        endpoint: That was called.
        model: What clients call it.
        identifier: What the client calls its user.
        unscanned: Places of the request that no detector can read.
    """
    versions = guard.versions
    judged = (*exchange.verdicts, *filter(None, [exchange.reply_verdict]))
    request = exchange.request
    return AuditRecord(
        request_id=exchange.id,
        endpoint=endpoint,
        model=model,
        action=_action(exchange, endpoint),
        route=exchange.route,
        finish_reason=exchange.finish_reason,
        verdicts=tuple(AuditVerdict.of(v, version=versions[v.detector]) for v in judged),
        prompt_scanned=exchange.is_scored and not unscanned,
        num_reply_tokens_scanned=exchange.num_scanned,
        would_route=exchange.would_route,
        num_prompt_tokens=0 if request is None else len(request.prompt),
        num_reply_tokens=len(exchange.tokens),
        guard_s=exchange.scored.guard_s if exchange.scored else 0.0,
        error="not_answered" if exchange.route == ERROR else None,
        safety_identifier=identifier,
        prompt=None if request is None else json.dumps(request.prompt.chat.as_messages()),
        reply="".join(token.text for token in exchange.tokens),
    )


def _action(exchange: Exchange, endpoint: str) -> Action:
    if endpoint == MODERATIONS and exchange.finish_reason == "scored":
        return "judged"
    if exchange.route in _ACTIONS:
        return _ACTIONS[exchange.route]
    if exchange.finish_reason in (None, "abandoned"):
        return "error"
    if exchange.would_route is not None:
        return "observed"
    return "answered" if exchange.route in (PASS, PASS_UNSCORED) else "responded"

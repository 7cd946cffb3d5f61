"""Greedy replies of a model by itself and under responders, drawn once and kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from demur.core.protocols import Engine, Responder
from demur.core.readings import Array
from demur.core.results import PASS, Reply
from demur.core.types import Chat, Sampling
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.exchange import plain_replies
from demur.guard.guard import SCORE_ONLY
from demur.guard.kept_replies import Answer, KeptReplies, KeptReply, digest_of, unguarded
from demur.guard.packaged import responder_line
from demur.guard.responding import load_responder, route_of
from demur.guard.routes import Always, FlaggedTo, Route
from demur.modeling.gguf import cache_folder
from demur.responders.fixed_reply import FixedReply

BASE = "base"


@dataclass(frozen=True)
class Alone:
    """What was measured of prompts that were answered one at a time."""

    num_passed: int
    """That the guard passed."""
    num_identical: int
    """Of these, whose replies are those of the model by itself, token for token."""
    first_token_s: float
    """Median, of prompts that went to the responder."""
    tokens_per_s: float
    """Of the same replies, the first token left out; median."""
    base_first_token_s: float
    base_tokens_per_s: float
    """The same prompts, answered by the model alone."""


@dataclass(frozen=True)
class Answers:
    """Answers prompts, and keeps the replies on disk.

    Args:
        engine: Runs the model.
        detector: Gives the verdicts that responders see, and gates them.
        max_tokens: Of a reply.
        report: Called with a line of progress now and then.
        root: Where replies are kept; None is the user's cache.
    """

    engine: Engine
    detector: CalibratedDetector
    max_tokens: int
    report: Callable[[str], None]
    root: Path | None = None

    @property
    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(max_tokens=self.max_tokens, temperature=0.0)

    def base(self, chats: Sequence[Chat]) -> list[KeptReply]:
        """Return the replies of the model by itself.

        Raises:
            DataError: A chat could not be answered.
        """
        answer = unguarded(self.engine, self.sampling)
        return self._kept(BASE, {}, answer).of(chats, report=self._progress(BASE))

    def always(self, line: str, chats: Sequence[Chat]) -> list[KeptReply]:
        """Return the replies with a responder switched on for every chat.

        Args:
            line: Of the responder, as `load_responder` takes it.
            chats: To answer.

        Raises:
            ConfigError: There is no such responder.
            DataError: A chat could not be answered.
        """
        line = responder_line(line, self.engine)
        responder = load_responder(line, self.engine.model_id)
        guard = self._guard(line, responder, Always(route_of(line)))
        depends_on: dict[str, object] = {"responder": repr(responder)}
        if not getattr(responder, "ignores_verdicts", False):
            depends_on["detector"] = [self.detector.version, self.detector.threshold]
        kept = self._kept(route_of(line), depends_on, partial(_guarded, guard, self.sampling))
        return kept.of(chats, report=self._progress(line))

    def margins(self, chats: Sequence[Chat]) -> Array:
        """Return how far each score is over the detector's threshold, [chat]; 0 is flagged."""
        guard = self._guard("fixed_reply", FixedReply(), FlaggedTo("fixed_reply"))
        replies = guard.replies(chats, SCORE_ONLY)
        scores = [reply.verdicts[0].score for reply in replies]
        return np.array([np.inf if s is None else s for s in scores]) - self.detector.threshold

    def alone(self, line: str, chats: Sequence[Chat]) -> Alone:
        """Answer chats one at a time, by the guard and by the model itself, and compare.

        Raises:
            ConfigError: There is no such responder.
        """
        line = responder_line(line, self.engine)
        responder = load_responder(line, self.engine.model_id)
        gated = self._guard(line, responder, FlaggedTo(route_of(line)))
        always = self._guard(line, responder, Always(route_of(line)))
        passed: list[bool] = []
        pairs: list[tuple[Reply, Reply]] = []
        for chat in chats:
            (plain,) = plain_replies(self.engine, [chat], self.sampling)
            guarded = gated.reply(chat, self.sampling)
            if guarded.route == PASS:
                passed.append(guarded.token_ids == plain.token_ids)
                guarded = always.reply(chat, self.sampling)
            pairs.append((guarded, plain))
        return Alone(
            num_passed=len(passed),
            num_identical=sum(passed),
            first_token_s=median(of.timings.first_token_s for of, _ in pairs),
            tokens_per_s=median(tokens_per_s(of) for of, _ in pairs),
            base_first_token_s=median(of.timings.first_token_s for _, of in pairs),
            base_tokens_per_s=median(tokens_per_s(of) for _, of in pairs),
        )

    def _guard(self, line: str, responder: Responder, route: Route) -> Guard:
        return Guard(
            self.engine,
            [self.detector],
            route=route,
            responders={route_of(line): responder},
            on_error="raise",
        )

    def _kept(self, name: str, depends_on: dict[str, object], answer: Answer) -> KeptReplies:
        digest = digest_of(
            {
                "model": self.engine.model_id.as_dict(),
                "max_tokens": self.max_tokens,
                **depends_on,
            }
        )
        root = self.root or cache_folder() / "answers"
        return KeptReplies(root / f"{name}-{digest}.jsonl", answer)

    def _progress(self, name: str) -> Callable[[int, int], None]:
        def report(num_done: int, num_replies: int) -> None:
            if num_done % 50 == 0 or num_done == num_replies:
                self.report(f"{name}: {num_done} of {num_replies} replies")

        return report


def _guarded(
    guard: Guard, sampling: Sampling, chats: Sequence[Chat], ids: Sequence[str]
) -> Iterator[Reply]:
    return guard.replies(chats, sampling, request_ids=ids)


def tokens_per_s(reply: Reply) -> float:
    """Return tokens a second after the first; 0 where there is no second one."""
    seconds = reply.timings.total_s - reply.timings.first_token_s
    return (len(reply.token_ids) - 1) / seconds if seconds > 0 else 0.0

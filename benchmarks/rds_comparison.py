"""Replies to prompts under responders that ignore verdicts, and what became of them."""

from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.arms import tell
from benchmarks.rds_artifacts import METHOD
from benchmarks.rds_report import Effect, Speed
from benchmarks.words import LABELLERS
from demur.core.outcomes import Answered
from demur.core.readings import Array
from demur.core.reads import Texts
from demur.core.types import Chat
from demur.detectors.length import Length
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.exchange import plain_replies
from demur.guard.kept_replies import KeptReply
from demur.guard.responding import load_responder
from demur.guard.routes import Always
from demur.scorers.perplexity import Perplexity
from demur.studies._answers import Answers
from demur.studies._arms import paired_change
from demur.studies._cases import Cases
from demur.studies._outcomes import Labelling, Outcomes

NUM_ROUNDS = 3


def any_detector() -> CalibratedDetector:
    """Return a detector that costs nothing: all prompts go to the responder, whatever it says."""
    nothing = {"weight": np.zeros(1), "bias": np.zeros(1)}
    return CalibratedDetector(
        "length", Length((Texts(),)).load_state(nothing), 0.0, slope=1.0, intercept=0.0, version="0"
    )


class Comparison:
    """Replies to the test prompts, and what became of them.

    Args:
        engine: Runs the model.
        cases: The prompts.
        max_tokens: Of a reply.
    """

    def __init__(self, engine: TransformersEngine, cases: Cases, max_tokens: int) -> None:
        self.engine, self.cases = engine, cases
        self.answers = Answers(engine, any_detector(), max_tokens, tell)
        perplexity = Perplexity(loaded=engine.loaded)

        def surprise(answers: Sequence[Answered]) -> Array:
            scores = [judged.score for judged in perplexity.judge(answers)]
            return np.array([np.nan if score is None else score for score in scores])

        self._labelling = Labelling(LABELLERS, surprise)

    def chats(self, rows: Array) -> list[Chat]:
        """Return the prompts in some rows."""
        return [self.cases.examples[int(row)].chat for row in rows]

    def base(self, rows: Array) -> list[KeptReply]:
        """Return the greedy replies."""
        return self.answers.base(self.chats(rows))

    def under(self, lines: Sequence[str], rows: Array) -> list[KeptReply]:
        """Return the replies under responders, which take the prompts in turns."""
        found: dict[int, KeptReply] = {}
        for number, line in enumerate(lines):
            of_line = rows[number :: len(lines)]
            replies = self.answers.always(line, self.chats(of_line))
            found |= dict(zip(of_line.tolist(), replies, strict=True))
        return [found[int(row)] for row in rows]

    def outcomes(self, rows: Array, replies: Sequence[KeptReply]) -> Outcomes:
        """Return what became of replies."""
        return self._labelling.label(self.chats(rows), replies)

    def effect(self, name: str, role: str, of: Outcomes, base: Outcomes, rows: Array) -> Effect:
        """Return how many are refused, and how many more than by greedy decoding."""
        group = self.cases.group[rows]
        refused = of.outcome == "refused"
        change, interval = paired_change(refused, base.outcome == "refused", group)
        known = of.perplexity[~np.isnan(of.perplexity)]
        return Effect(
            arm=name,
            role=role,
            num_prompts=len(rows),
            refused=float(refused.mean()),
            change=change,
            interval=interval,
            refused_second=float((of.second == "refused").mean()),
            unclear=float((of.outcome == "unclear").mean()),
            collapsed=float(of.collapsed.mean()),
            perplexity=float(np.median(known)) if len(known) else None,
        )

    def same_alone(self, line: str, rows: Array) -> Array:
        """Return where a responder gives the greedy reply, token for token, [row].

        Each prompt is answered alone: in a batch bfloat16 may round to another token.
        """
        guard = self._guard(line)
        found = []
        for chat in self.chats(rows):
            (plain,) = plain_replies(self.engine, [chat], self.answers.sampling)
            found.append(guard.reply(chat, self.answers.sampling).token_ids == plain.token_ids)
        return np.array(found)

    def speeds(self, lines: dict[str, str], rows: Array) -> list[Speed]:
        """Return tokens a second by arm, and as a ratio to greedy decoding; prompts alternate."""
        guards = {name: self._guard(line) for name, line in lines.items()}
        rates: dict[str, list[float]] = {name: [] for name in ("greedy", *lines)}
        generator = np.random.default_rng(0)
        for _ in range(NUM_ROUNDS):
            for chat in self.chats(rows):
                for name in generator.permutation(sorted(rates)):
                    rates[name].append(self._rate(chat, guards.get(name)))
        plain = np.array(rates["greedy"])
        return [
            Speed(name, median(of), float(np.median(np.array(of) / plain)))
            for name, of in rates.items()
        ]

    def _guard(self, line: str) -> Guard:
        responder = load_responder(line, self.engine.model_id)
        return Guard(
            self.engine,
            [any_detector()],
            route=Always(METHOD),
            responders={METHOD: responder},
            on_error="raise",
        )

    def _rate(self, chat: Chat, guard: Guard | None) -> float:
        sampling = self.answers.sampling
        if guard is None:
            (reply,) = plain_replies(self.engine, [chat], sampling)
        else:
            reply = guard.reply(chat, sampling)
        timings = reply.timings
        return (len(reply.token_ids) - 1) / (timings.total_s - timings.first_token_s)

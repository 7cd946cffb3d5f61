"""What routing costs at a share of flagged prompts: measured one by one, combined by arithmetic.

Prompts that pass and prompts that are flagged are each answered by the model alone and by the
guard, one after the other. A prompt's ratios are the guard's seconds to the first token, and its
seconds a token after that, over the model's own. At a flagged share q,

    ratio(q) = (1 - q) * median of those that pass + q * median of those that are flagged,

times the model's own median. So a mix is taken in which flagged prompts are as long as others, and
replies, too. An adapter that is on for every prompt may be merged into the weights, and then costs
nothing; a detector is not needed for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.arms import Arms
from demur.core.readings import Array
from demur.core.results import PASS, Reply
from demur.core.types import Chat
from demur.guard import Guard
from demur.guard.exchange import plain_replies
from demur.guard.kept_replies import KeptReply
from demur.guard.responding import load_responder, route_of
from demur.guard.routes import FlaggedTo
from demur.studies._answers import tokens_per_s

SHARES = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Timed:
    """One prompt, answered by the model alone and by the guard."""

    base_first_s: float
    base_tokens_per_s: float
    first_s: float
    tokens_per_s: float
    """0 where the reply has one token."""
    is_identical: bool
    """The guard's reply is the expected one, token for token."""


def timings_of(
    arms: Arms, line: str, flagged: Array, base: Sequence[KeptReply], always: Sequence[KeptReply],
    *, number: int,
) -> dict[str, list[Timed]]:  # fmt: skip
    """Answer prompts one by one, and time them; those that pass, and those that are flagged.

    Args:
        arms: The model and its prompts.
        line: Of the adapter.
        flagged: By the detector, [prompt].
        base: The model's own replies, as they were drawn before.
        always: Those under the adapter.
        number: Of prompts of each sort, at most.
    """
    responder = load_responder(line, arms.engine.model_id)
    guard = Guard(
        arms.engine,
        [arms.gate],
        route=FlaggedTo(route_of(line)),
        responders={route_of(line): responder},
        on_error="raise",
    )
    found: dict[str, list[Timed]] = {"passed": [], "flagged": []}
    for name, wanted, kept in (("passed", ~flagged, base), ("flagged", flagged, always)):
        rows = [row for row in range(len(flagged)) if wanted[row]]
        rows = rows[:: max(1, len(rows) // number)][:number]
        for row in rows[:1]:
            _timed(arms, guard, arms.chats[row], kept[row])
        found[name] = [_timed(arms, guard, arms.chats[row], kept[row]) for row in rows]
    return found


def _timed(arms: Arms, guard: Guard, chat: Chat, kept: KeptReply) -> Timed:
    (plain,) = plain_replies(arms.engine, [chat], arms.answers.sampling)
    guarded = guard.reply(chat, arms.answers.sampling)
    expected = plain.token_ids if guarded.route == PASS else kept.token_ids
    return Timed(*_pace(plain), *_pace(guarded), is_identical=guarded.token_ids == expected)


def _pace(reply: Reply) -> tuple[float, float]:
    return reply.timings.first_token_s, tokens_per_s(reply)


def cost_of(timings: dict[str, list[Timed]]) -> dict[str, Any]:
    """Return the medians, and what they make at some shares of flagged prompts."""
    every = [of for found in timings.values() for of in found]
    own_first = median(of.base_first_s for of in every)
    own_pace = [of.base_tokens_per_s for of in every if of.base_tokens_per_s > 0]
    own = {"first_token_s": own_first, "tokens_per_s": median(own_pace) if own_pace else None}
    ratios = {name: ratios_of(found) for name, found in timings.items()}
    return {
        "base": own,
        "ratios": ratios,
        "at": [at_share(share, own, ratios) for share in SHARES] if all(timings.values()) else [],
    }


def ratios_of(timed: Sequence[Timed]) -> dict[str, Any]:
    """Return the medians of one sort of prompts, over the model alone."""
    several = [of for of in timed if of.tokens_per_s > 0 and of.base_tokens_per_s > 0]
    return {
        "prompts": len(timed),
        "identical": sum(of.is_identical for of in timed),
        "first_token": median(of.first_s / of.base_first_s for of in timed) if timed else None,
        "seconds_a_token": median(of.base_tokens_per_s / of.tokens_per_s for of in several)
        if several
        else None,
    }


def at_share(
    share: float, own: dict[str, Any], ratios: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return what a mix with a share of flagged prompts takes."""

    def mixed(name: str) -> float | None:
        passed, flagged = ratios["passed"][name], ratios["flagged"][name]
        if passed is None or flagged is None:
            return None
        return float((1 - share) * passed + share * flagged)

    first, a_token = mixed("first_token"), mixed("seconds_a_token")
    return {
        "share": share,
        "first_token_ratio": first,
        "first_token_s": None if first is None else first * own["first_token_s"],
        "tokens_per_s_ratio": None if a_token is None else 1 / a_token,
        "tokens_per_s": own["tokens_per_s"] / a_token if a_token and own["tokens_per_s"] else None,
    }

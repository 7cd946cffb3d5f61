"""Judges a request that another model will answer, and draws replies to flagged ones only."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from demur.core.results import ERROR, PASS, PASS_UNSCORED, Verdict
from demur.core.types import Chat, Sampling
from demur.guard.exchange import Exchange
from demur.serving.answers import Answer, Call
from demur.serving.judged_chat import JudgedChat
from demur.serving.service import Service

PASSED = (PASS, PASS_UNSCORED)
SCORE_ONLY = Sampling(max_tokens=0)


async def judge(
    service: Service, judged: JudgedChat, *, sampling: Sampling, call: Call
) -> Answer | Exchange:
    """Judge the chats of a request side by side, one pass through the model each.

    A flagged one takes a pass more, so that those that pass take the engine's short way, which
    keeps nothing to decode from. The verdict and the intervention stay those of the first.

    Args:
        service: Whose guard judges.
        judged: What to judge.
        sampling: How a reply is drawn, if the request is flagged and a responder has the local
            model write it.
        call: Names the request.

    Returns:
        The local answer to what is flagged, else the verdicts.

    Raises:
        ApiError: A chat cannot be rendered or scored, was blocked, or the server has too much to
            do.
    """
    await service.records.require_writable()
    answers = await _rendered(service, judged.chats, call=call)
    if not all(_shows_every_turn(answer) for answer in answers):
        answers = await _rendered(service, judged.in_one_turn, call=call)
    first = answers[0]
    try:
        await asyncio.gather(*(answer.decide() for answer in answers))
        first = _deciding(answers)
        await first.require_answerable()
    except asyncio.CancelledError:
        first.close()
        raise
    finally:
        _let_go(answers)
    if first.exchanges[0].route in PASSED:
        return _combined([answer.exchanges[0] for answer in answers])
    return await _answered(first, sampling)


async def _rendered(service: Service, chats: Sequence[Chat], *, call: Call) -> list[Answer]:
    answers = []
    for id, chat in zip((call.id, f"{call.id}-newest"), chats, strict=False):
        answer = Answer(service, replace(call, id=id))
        await answer.render(chat, SCORE_ONLY)
        answers.append(answer)
    return answers


async def _answered(flagged: Answer, sampling: Sampling) -> Answer:
    """Return the answer to a flagged chat, as the responder has decided already.

    Raises:
        ApiError: The engine failed, or the server has too much to do.
    """
    judged = flagged.exchanges[0]
    assert judged.request is not None, "what is flagged was rendered"
    answer = Answer(flagged.service, flagged.call)
    request = replace(
        judged.request,
        sampling=sampling,
        decide=lambda _: judged.awaited,
        is_abandoned=answer.abandoned.is_set,
    )
    answer.exchanges = [replace(judged, request=request, finish_reason=None)]
    await answer.settle()
    return answer


def _shows_every_turn(answer: Answer) -> bool:
    """Tell whether the template has rendered all turns: some drop what they do not know."""
    request = answer.exchanges[0].request
    if request is None:
        return False
    turns = [span for span in request.prompt.spans if span.kind != "generation_prompt"]
    return len(turns) == len(request.prompt.chat.messages)


def _deciding(answers: Sequence[Answer]) -> Answer:
    """Return the first that is flagged, else the first that failed, else the first."""

    def rank(answer: Answer) -> int:
        route = answer.exchanges[0].route
        return 2 if route in PASSED else int(route == ERROR)

    return min(answers, key=rank)


def _let_go(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.let_go()


def _combined(exchanges: Sequence[Exchange]) -> Exchange:
    """Return exchanges that all passed as one: of each detector the verdict that is least safe."""
    first = exchanges[0]
    routes = [exchange.route for exchange in exchanges]
    would = [exchange.would_route for exchange in exchanges]
    return replace(
        first,
        route=PASS_UNSCORED if PASS_UNSCORED in routes else PASS,
        would_route=next((route for route in would if route not in (None, PASS)), would[0]),
        verdicts=tuple(
            max(verdicts, key=_danger)
            for verdicts in zip(*(exchange.verdicts for exchange in exchanges), strict=True)
        ),
        finish_reason=None,
    )


def _danger(verdict: Verdict) -> float:
    """Return the score; what could not be scored counts as the least safe."""
    return float("inf") if verdict.score is None else verdict.score

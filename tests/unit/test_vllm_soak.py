"""The soak of the vLLM engine finds what is lost, mixed up or unscored; vLLM is not needed."""

import pytest

from benchmarks.soak_vllm_checks import FEWEST, MOST, Check, Known, Vanishing, distinct, power
from demur.core.protocols import Done
from demur.core.types import Chat, Sampling
from demur.engines.fake import FakeEngine
from demur.guard.exchange import Exchange
from demur.guard.guard import Guard
from tests.guards import REFUSAL, UNSAFE, marker_guard

TEXTS = [
    "One two three four five six seven eight nine.",
    "Ten nine eight seven six five four three two.",
    "Red green blue white black pink grey brown gold.",
]


class Soaked:
    """Exchanges of the fake engine, and the check of them."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.guard: Guard = marker_guard(self.engine)
        self.known = [
            Known(chat, self.guard, self.answer(chat, MOST)[0].reply().token_ids)
            for chat in (Chat.from_text(text) for text in TEXTS)
        ]
        self.check = Check(self.known, lambda *_: 5.0, REFUSAL)

    def answer(
        self, chat: Chat, max_tokens: int, *, vanishing: Vanishing | None = None
    ) -> tuple[Exchange, list[str]]:
        """Return an exchange with its events, and why it ended."""
        exchange = self.guard.open(
            chat, Sampling(max_tokens=max_tokens), is_abandoned=vanishing or (lambda: False)
        )
        assert exchange.request is not None
        reasons: list[str] = []
        for event in self.engine.run([exchange.request]):
            exchange.take(event)
            if isinstance(event, Done):
                reasons.append(event.reason)
        return exchange, reasons


@pytest.fixture
def soaked() -> Soaked:
    return Soaked()


def test_right_answers_of_all_kinds_are_no_problem(soaked: Soaked) -> None:
    check = soaked.check
    check.expect("0", 0, None)
    check.take("0", *soaked.answer(soaked.known[0].chat, FEWEST))
    check.expect("1", None, None)
    check.take("1", *soaked.answer(Chat.from_text(UNSAFE), FEWEST))
    for number, after in enumerate((0, 1, 3), start=2):
        client = Vanishing(after)
        check.expect(str(number), 1, client)
        check.take(str(number), *soaked.answer(soaked.known[1].chat, MOST, vanishing=client))
    check.judge()
    assert check.problems == []
    assert check.counts["clients that left"] == 3
    assert check.counts["flagged prompts with the responder's answer"] == 1
    assert check.counts["replies that are those of the same prompt alone"] >= 1


def test_a_reply_of_another_prompt_is_mixed_up(soaked: Soaked) -> None:
    soaked.check.expect("0", 0, None)
    soaked.check.take("0", *soaked.answer(soaked.known[1].chat, FEWEST))
    assert soaked.check.problems == []
    soaked.check.judge()
    assert "mixed up" in soaked.check.problems[0]


def test_another_reply_that_is_nearly_greedy_is_right(soaked: Soaked) -> None:
    check = Check(soaked.known, lambda *_: 0.5, REFUSAL)
    check.expect("0", 0, None)
    check.take("0", *soaked.answer(soaked.known[1].chat, FEWEST))
    check.judge()
    assert (check.problems, check.largest_gap) == ([], 0.5)


def test_what_is_lost_or_goes_the_wrong_way_is_a_problem(soaked: Soaked) -> None:
    chat, flagged = soaked.known[0].chat, Chat.from_text(UNSAFE)
    cases: list[tuple[int | None, tuple[Exchange, list[str]], str]] = [
        (0, (soaked.answer(chat, FEWEST)[0], []), "ended 0 times"),
        (0, (soaked.answer(chat, FEWEST)[0], ["length", "length"]), "ended 2 times"),
        (0, soaked.answer(chat, MOST, vanishing=Vanishing(1)), "had not left"),
        (0, soaked.answer(flagged, FEWEST), "it passes"),
        (None, soaked.answer(chat, FEWEST), "flagged"),
    ]
    for number, (place, (exchange, reasons), what) in enumerate(cases):
        soaked.check.expect(str(number), place, None)
        soaked.check.take(str(number), exchange, reasons)
        assert what in soaked.check.problems[-1]
    soaked.check.expect("never", 0, None)
    soaked.check.judge()
    assert "nothing came" in soaked.check.problems[-1]
    assert len(soaked.check.problems) == len(cases) + 1


def test_an_answer_without_verdicts_is_unscored(soaked: Soaked) -> None:
    exchange, reasons = soaked.answer(soaked.known[0].chat, FEWEST)
    exchange.verdicts = ()
    soaked.check.expect("0", 0, None)
    soaked.check.take("0", exchange, reasons)
    assert soaked.check.problems == ["request 0: unscored"]


def test_known_replies_differ_early_and_are_whole(soaked: Soaked) -> None:
    one = soaked.known[0]
    twin = Known(one.chat, one.guard, (*one.token_ids[:FEWEST], *[0] * (MOST - FEWEST)))
    short = Known(one.chat, one.guard, (1, 2))
    assert distinct([one, twin, short, soaked.known[1]]) == [one, soaked.known[1]]


def test_the_power_is_the_share_of_strange_replies_that_are_found(soaked: Soaked) -> None:
    assert power(soaked.known, lambda *_: 5.0, num=7, seed=0) == {"tried": 7, "caught": 7}
    assert power(soaked.known, lambda *_: 0.5, num=7, seed=0) == {"tried": 7, "caught": 0}

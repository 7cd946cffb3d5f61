"""The study of safety layers: a block that refuses is found by scaling, and random ones are not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from demur.core.errors import ConfigError
from demur.core.examples import Example, Label
from demur.core.outcomes import Answered, Judgement, Scorer
from demur.core.readings import Array, Readings
from demur.core.reads import Read
from demur.core.types import Chat
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.modeling.block_search import Range
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.modeling.scaling import scaled
from demur.studies._gap import Gap, measure_gap
from demur.studies._localising import Localised, Localiser
from demur.studies._study import StudyInputs
from demur.studies.safety_layers import COLUMNS, SafetyLayers, drawn
from tests.interventions import next_logits, plain_greedy, state_hash
from tests.refusing import FACTOR, NUM_BLOCKS, REFUSES, REFUSING, lookalikes, refusing
from tests.tiny import tiny

SMALL = SafetyLayers(
    num_pairs=8, num_permutations=20, num_draws=20, reach=1, num_lookalikes=4, reply_tokens=2,
    num_random=1,
)  # fmt: skip


class ByFirstLetter(Scorer):
    """Calls a reply a refusal if it begins as those of the planted model do."""

    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        return [
            Judgement("refused" if of.reply.startswith(REFUSES) else "complied") for of in answers
        ]


def example(id: str, label: Label) -> Example:
    return Example(id, Chat.from_text(f"Tell me of number {id}"), label)


def nothing_read(_examples: Sequence[Example], _reads: Sequence[Read]) -> Readings:
    raise AssertionError("nothing is to be read")


def inputs_of(
    loaded: LoadedModel, read: Callable[..., Readings] = nothing_read, **sets: Any
) -> StudyInputs:
    return StudyInputs(
        read, len(loaded.parts.blocks), **{"train": (), "val": (), "tests": {}} | sets,
        engine=TransformersEngine(loaded),
    )  # fmt: skip


def localiser() -> Localiser:
    return Localiser(refusing(), FACTOR, 2, ByFirstLetter(), inputs_of(refusing()))


def test_scaling_finds_the_block_that_refuses() -> None:
    before = state_hash(refusing())
    found = localiser().search(Range(4, 5), lookalikes(3), reach=3)
    assert found.chosen == Range(4, REFUSING)
    assert {of: count for of, count in found.counts.items() if count} == {
        of: 3.0 for of in found.counts if REFUSING in of.layers
    }
    assert len(set(found.counts.values())) == 2
    assert state_hash(refusing()) == before


def test_another_block_of_the_same_width_refuses_nothing() -> None:
    one = localiser()
    for of, share in ((None, 0.0), (Range(7, 7), 0.0), (Range(0, 2), 0.0), (Range(6, 6), 1.0)):
        assert one.refused(lookalikes(4), of).mean() == share


def plain_nll(loaded: LoadedModel, examples: Sequence[Example], number: int) -> float:
    """Return the mean NLL a token of the planted model's own replies, by a plain loop."""
    renderer, found = ChatRenderer.of(refusing()), []
    for of in examples:
        prompt = renderer.render(of.chat)
        ids = list(prompt.token_ids)
        for token in plain_greedy(refusing(), prompt, number):
            found.append(-float(next_logits(loaded, ids).log_softmax(-1)[token]))
            ids.append(token)
    return float(np.mean(found))


def test_what_scaling_does_to_ordinary_replies_is_measured() -> None:
    of_both = [Range(0, 0), Range(REFUSING, REFUSING)]
    found = localiser().surprise(lookalikes(2), of_both)
    models = [refusing(), *(scaled(refusing(), of.layers, FACTOR) for of in of_both)]
    expected = [plain_nll(model, lookalikes(2), 2) for model in models]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] == found[1] != found[2]


def localised(chosen: list[int], at_random: list[int]) -> Localised:
    number = len(chosen)
    found, other = Range(1, 2), Range(5, 6)
    search = localiser().search(found, [], reach=0)
    return Localised(
        search=replace(search, chosen=found),
        randoms=(other,),
        refused={None: np.zeros(number, bool), found: _bools(chosen), other: _bools(at_random)},
        nll={None: 1.0, found: 1.25, other: 1.5},
        group=np.arange(number).astype(str),
    )


def _bools(values: list[int]) -> Array:
    return np.array(values, bool)


def test_a_finding_says_whether_the_place_matters() -> None:
    matters = localised([1] * 15 + [0] * 5, [0] * 18 + [1] * 2)
    assert "the place matters" in matters.findings()[1]
    assert "75.0% of 20 look-alikes" in matters.findings()[0]
    alike = localised([1] * 10 + [0] * 10, [0, 1] * 10)
    assert "the place does not matter here" in alike.findings()[1]


def test_cells_are_rates_and_changes_against_the_model_as_it_is() -> None:
    cells = localised([1] * 15 + [0] * 5, [0] * 20).cells(Range(1, 2))
    assert (cells["refused"], cells["change"], cells["nll_ordinary"]) == (0.75, 0.75, 1.25)
    assert cells["searched"] == 0.0
    assert localised([1, 0], [0, 0]).cells(None)["change"] is None
    assert set(localised([1, 0], [0, 0]).cells(Range(3, 3)).values()) == {None}


# The gap


def planted_reader(first: int) -> Callable[[Sequence[Example], Sequence[Read]], Readings]:
    """Return a reader of states in which unsafe prompts part from a block on."""
    direction = np.random.default_rng(1).normal(size=16)

    def read(examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
        generator = np.random.default_rng(2)
        states = 3 + generator.normal(size=(len(examples), NUM_BLOCKS, 16))
        unsafe = [row for row, of in enumerate(examples) if of.label == "unsafe"]
        states[unsafe, first:] += 3 * direction
        return Readings(dict.fromkeys(reads, states.astype(np.float32)))

    return read


def of_both(number: int, *, start: int = 0) -> list[Example]:
    labels: tuple[Label, Label] = ("unsafe", "safe")
    return [example(f"{start + row}", labels[row % 2]) for row in range(number)]


def planted_gap(first: int, *, num_draws: int) -> Gap:
    inputs = replace(inputs_of(tiny(), planted_reader(first)), num_blocks=NUM_BLOCKS)
    assert inputs.engine is not None
    return measure_gap(
        inputs,
        inputs.engine,
        of_both(60),
        num_pairs=30,
        num_permutations=99,
        num_draws=num_draws,
        against="both",
    )


@pytest.mark.parametrize("first", [2, 5])
def test_a_planted_gap_is_measured_beyond_chance(first: int) -> None:
    gap = planted_gap(first, num_draws=20)
    assert gap.rise is not None
    assert (gap.rise.first, gap.rise.last) == (first, first)
    for ends in (gap.first, gap.last):
        assert ends is not None
        assert ends[0] <= first <= ends[1]
    assert gap.p == 0.01
    assert gap.interval[0, first] > gap.chance[1, first]
    assert gap.curves.slope[first] > gap.slope_chance[first]
    assert (gap.interval[0] <= gap.curves.gap).all()
    assert f"grows from block {first} (" in gap.finding("prompts")


def test_without_a_separation_nothing_grows() -> None:
    gap = planted_gap(NUM_BLOCKS, num_draws=5)
    assert gap.rise is None
    assert "grows nowhere" in gap.finding("prompts")


# The whole


def read_planted(examples: Sequence[Example], reads: Sequence[Read]) -> Readings:
    return planted_reader(2)(examples, reads)


@cache
def whole() -> StudyInputs:
    return inputs_of(
        refusing(),
        read_planted,
        train=[*of_both(40), *lookalikes(6, start=500)],
        val=lookalikes(3, start=600),
        tests={"test_id": of_both(20, start=100), "scary": lookalikes(5, start=700)},
    )


def test_an_answer_has_a_row_a_block_and_one_a_range() -> None:
    before = state_hash(refusing())
    result = SMALL.run(whole())
    assert result.columns == COLUMNS
    of_blocks = [row for row in result.rows if row["gap"] is not None]
    of_ranges = [row for row in result.rows if row["gap"] is None]
    assert [row["blocks"] for row in of_blocks] == [str(block) for block in range(NUM_BLOCKS)]
    assert {row["is"] for row in of_ranges} >= {"as it is", "safety layers", "random"}
    assert all(row["gap_other_prompts"] is not None for row in of_blocks)
    assert {plot.name for plot in result.plots} == {"gap", "slope", "scaling"}
    assert sum(finding.startswith("Claim of the paper") for finding in result.findings) == 2
    assert state_hash(refusing()) == before


def test_the_same_inputs_give_the_same_answer() -> None:
    assert SMALL.run(whole()) == SMALL.run(whole())


def test_no_test_prompt_has_a_say_in_what_is_chosen() -> None:
    tests = {"test_id": of_both(20, start=900), "scary": lookalikes(4, start=950)}
    first, second = (
        {
            row["blocks"]: (row["is"], row["searched"])
            for row in SMALL.run(inputs).rows
            if row["gap"] is None
        }
        for inputs in (whole(), replace(whole(), tests=tests))
    )
    assert first == second


def test_without_look_alikes_the_gap_alone_is_measured() -> None:
    result = SMALL.run(replace(whole(), tests={"test_id": of_both(8, start=100)}))
    assert len(result.rows) == NUM_BLOCKS
    assert any("No range was looked for" in finding for finding in result.findings)


def test_a_draw_of_a_role_is_that_of_its_seed() -> None:
    given = [*lookalikes(9), *of_both(8, start=50)]
    found = drawn(given, "look_alike", most=4, seed=0)
    assert len(found) == 4
    assert {of.kind for of in found} == {"look_alike"}
    assert found == drawn(given, "look_alike", most=4, seed=0)
    assert found != drawn(given, "look_alike", most=4, seed=1)


def test_an_engine_that_only_pretends_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --model"):
        SMALL.run(replace(whole(), engine=FakeEngine()))


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"num_pairs": 1}, "num_pairs"),
        ({"reach": -1}, "reach"),
        ({"against": "unsafe"}, "against"),
        ({"factor": 1.0}, "factor"),
        ({"factor": float("inf")}, "factor"),
        ({"reply_tokens": 0}, "reply_tokens"),
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        SafetyLayers(**wrong)

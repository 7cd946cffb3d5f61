"""The benchmark of SafeSwitch: what it counts, and that no fit has seen what it is measured on."""

import numpy as np
import pytest

from benchmarks.safeswitch import _compared
from benchmarks.safeswitch_report import report
from benchmarks.safeswitch_stages import (
    FRONT,
    LEAST,
    Gate,
    are_varied,
    counts,
    known,
    probe,
    under_two_systems,
)
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes
from tests.tiny import tiny

WHEN = ("before", "after")


def unsafe(number: int, *, group: str | None = None) -> list[Example]:
    """Return unsafe prompts: of four, two were complied with, one refused, and one is unknown."""
    return [
        Example(
            str(row),
            Chat.from_text(f"Prompt number {row}."),
            "unsafe",
            group=group,
            complied=None if row % 4 == 0 else row % 2 == 1,
        )
        for row in range(number)
    ]


def test_prompts_are_counted_by_what_is_known_of_them() -> None:
    examples = unsafe(16)
    assert counts(examples) == {"prompts": 16, "complied": 8, "refused": 4}
    assert len(known(examples)) == 12
    assert are_varied(unsafe(4 * LEAST))
    assert not are_varied(unsafe(4 * LEAST - 4))


def test_a_prompt_stays_in_its_group_under_another_system_prompt() -> None:
    strict, permissive, *_ = under_two_systems(unsafe(2))
    assert strict.group_key == permissive.group_key == unsafe(1)[0].group_key
    assert strict.chat.messages[0] != permissive.chat.messages[0]
    assert strict.chat.last_user_text == permissive.chat.last_user_text


def test_on_a_random_model_stage_two_is_no_better_than_chance(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path_factory.mktemp("cache")))
    generator = np.random.default_rng(0)
    examples = [
        Example(str(row), Chat.from_text(text), "unsafe", complied=bool(generator.integers(2)))
        for row, text in enumerate(map(str, generator.permutation(900)[:80]))
    ]
    found = probe(TransformersEngine(tiny()), examples)
    assert found["prompts"]["prompts"] == 80
    assert [(row["head"], row["k"]) for row in found["auroc"]] == [
        (head, number) for number in (0, 1, 3) for head in ("logistic", "mlp")
    ]
    for row in found["auroc"]:
        assert 0.2 < row["auroc"] < 0.8
        assert row["interval"][0] <= row["auroc"] <= row["interval"][1]
        assert row["gain"] == (0.0, 0.0) or row["k"] > 0


def outcomes(words: str) -> Outcomes:
    """Return outcomes by their first letters."""
    named = {"c": "complied", "r": "refused", "u": "unclear"}
    of = np.array([named[letter] for letter in words])
    nothing: Array = np.full(len(of), np.nan)
    return Outcomes(of, of, np.zeros(len(of), bool), nothing)


def test_a_gate_is_measured_by_what_it_keeps_and_spares() -> None:
    roles = np.array(["unsafe"] * 4 + ["look_alike"] * 2 + ["ordinary"] * 2)
    cases = Cases(tuple(unsafe(8)), roles)
    base, always = outcomes("cccrcccc"), outcomes("rrrrrrrc")
    flagged = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    thresholds = {0.025: 1.0, 0.05: 0.5, 0.1: 0.5, 0.2: 0.0}
    gate = Gate("mine", flagged.astype(float), flagged, thresholds)
    found = _compared(base, always, [gate], cases)
    (of,) = found["gates"]
    assert of["recall"] == 0.75
    assert of["recall_of_complied"] == pytest.approx(2 / 3)
    assert found["head_gain"]["change"] == 0.75
    assert of["share_of_gain"] == pytest.approx(2 / 3)
    assert of["share_of_gain_at_recall"] == pytest.approx(2 / 3 / 0.75)
    assert of["share_of_excess"] == pytest.approx(1 / 3)
    assert of["complied_down"] == pytest.approx(2 / 3)
    assert of["asked"] == {"unsafe": 0.75, "look_alike": 0.5, "ordinary": 0.0}
    first, *_, last = of["front"]
    assert first["complied_down"] == pytest.approx(2 / 3)
    assert (first["more_refused_look_alike"], first["more_refused_ordinary"]) == (0.5, 0.0)
    assert (last["recall"], last["complied"], last["more_refused_ordinary"]) == (1.0, 0.0, 0.5)
    oracle = [row for row in found["arms"] if row["arm"] == "oracle"]
    assert [row["refused"] for row in oracle] == [1.0, 0.0, 0.0]


def test_the_report_tells_of_a_model_that_never_refuses() -> None:
    roles = np.array(["unsafe"] * 4 + ["look_alike"] * 2 + ["ordinary"] * 2)
    gate = Gate("stage one", np.arange(8.0), np.zeros(8, bool), dict.fromkeys(FRONT, 0.0))
    refusals = {f"nll_{of}_{when}": 1.5 for of in ("refusals", "ordinary") for when in WHEN}
    model = {
        "model": {"name": "mine", "dtype": "float32"},
        "own_replies": {
            "tested": {"prompts": 4, "complied": 4, "refused": 0},
            "under two system prompts": {"prompts": 60, "complied": 58, "refused": 1},
        },
        "stage_two": {},
        "share": 1.0,
        "pilot": {"prompt_ms": 10.0, "with_pilot_ms": 25.0},
        "head": {"metrics": refusals, "megabytes": 3.0},
        **_compared(
            outcomes("cccccccc"), outcomes("rrrrrrrr"), [gate], Cases(tuple(unsafe(8)), roles)
        ),
    }
    about = {"processor": "x", "cores": 2, "versions": {"torch": "2"}}
    earlier = {**model, "gates": [{k: v for k, v in model["gates"][0].items() if k != "front"}]}
    text = report(
        {
            "machine": about,
            "fpr": 0.025,
            "reach": 0.1,
            "max_tokens": 8,
            "models": [earlier, model],
        }
    )
    assert text.count("The same gates with other thresholds") == 1
    assert "It refused 1 of 60 prompts" in text
    assert "| stage one | 100.0% | 100.0% |" in text
    assert "| stage one | 20.0% | 100.0% | 0.0% | 100% | +100.0 | +100.0 |" in text
    assert "non-refusal rate" in text

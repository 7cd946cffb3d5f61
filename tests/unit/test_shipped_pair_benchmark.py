"""What the benchmark of the pair that ships counts: flagged prompts alone, over all of a set."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.arms import Arms
from benchmarks.build_adapter import CONTRASTS, REQUESTS, prompts, with_reply
from benchmarks.shipped_pair import measured
from benchmarks.shipped_pair_report import over_refusal, report
from demur.core.errors import DataError
from demur.core.examples import Example
from demur.core.types import Chat
from demur.datasets import starter, written
from demur.datasets.demur_data import DemurData
from demur.studies._cases import Cases
from demur.studies._outcomes import Outcomes

BASE = {"a": "refused", "b": "complied", "c": "complied", "u": "complied", "v": "complied"}
RESPONDER = {"a": "refused", "b": "refused", "c": "complied", "u": "refused", "v": "complied"}
FLAGGED = {"a", "b", "c", "u", "v"}
NAMES = "abcdefghijuvw"


class Planted:
    """Arms whose replies are the outcomes themselves."""

    labelling: Any

    def __init__(self) -> None:
        labels = ["unsafe" if name in "uvw" else "safe" for name in NAMES]
        examples = tuple(
            Example(name, Chat.from_text(name), cast(Any, label), f"group {name}")
            for name, label in zip(NAMES, labels, strict=True)
        )
        role = np.array(["unsafe" if label == "unsafe" else "look_alike" for label in labels])
        self.cases = Cases(examples, role)
        self.chats = [example.chat for example in examples]
        self.labelling = SimpleNamespace(label=self.label)
        self.asked: list[list[str]] = []

    def margins(self) -> np.ndarray:
        return np.array([0.0 if name in FLAGGED else -1e-9 for name in NAMES])

    def base_replies(self, rows: Sequence[int]) -> list[str]:
        return [BASE[NAMES[row]] for row in rows]

    def replies(self, line: str, rows: Sequence[int]) -> list[str]:
        self.asked.append([NAMES[row] for row in rows])
        return [RESPONDER[NAMES[row]] for row in rows]

    def label(self, chats: Sequence[Chat], replies: list[str]) -> Outcomes:
        assert len(chats) == len(replies)
        none = np.zeros(len(replies))
        return Outcomes(np.array(replies), np.array(replies), none.astype(bool), none)


@pytest.fixture
def planted() -> Planted:
    return Planted()


SETS = np.array(["looks, safe"] * 10 + ["harm"] * 3)


def test_only_flagged_prompts_are_answered_anew(planted: Planted) -> None:
    measured(cast(Arms, planted), SETS, "adapter:pretrained")
    assert planted.asked == [["a", "b", "c", "u", "v"]]


def test_changes_are_over_all_prompts_of_a_set(planted: Planted) -> None:
    safe, unsafe = measured(cast(Arms, planted), SETS, "adapter:pretrained")
    assert safe["flagged"] == pytest.approx(0.3)
    assert safe["by_base"] == pytest.approx(1 / 3)
    assert safe["by_responder"] == pytest.approx(2 / 3)
    assert safe["change"] == pytest.approx(0.1)
    assert cast(float, safe["change_low"]) <= 0.1 <= cast(float, safe["change_high"])
    assert (safe["counted"], unsafe["counted"]) == ("refused", "complied")
    assert unsafe["change"] == pytest.approx(-1 / 3)


def test_a_set_without_flagged_prompts_has_no_shares(planted: Planted) -> None:
    sets = np.array(["looks, safe"] * 3 + ["calm, safe"] * 7 + ["harm"] * 3)
    calm = measured(cast(Arms, planted), sets, "adapter:pretrained")[1]
    assert (calm["by_base"], calm["by_responder"], calm["change"]) == (None, None, 0.0)


def test_the_worst_set_decides(planted: Planted) -> None:
    found = measured(cast(Arms, planted), SETS, "adapter:pretrained")
    assert over_refusal(found).endswith("at most 3 points on every set: not reached.")
    assert "+10.0 on looks, the worst" in over_refusal(found)
    page = report(
        {
            "model": {"name": "tiny"},
            "machine": {"processor": "one", "cores": 1},
            "seconds": 60,
            "max_tokens": 4,
            "responders": {"adapter:some/where/mine": found},
        }
    )
    assert "## `mine`" in page
    assert "| harm | 3 | 66.7% | complied | 100.0% | 50.0% | -33.3 (" in page


class PlantedData:
    """Public sets of two prompts each, one of which is kept for measuring."""

    def __init__(self, *, may_ship: bool = True) -> None:
        self.sets = {name: SimpleNamespace(may_ship=may_ship) for name in (*CONTRASTS, *REQUESTS)}

    def load(self, name: str, splits: Sequence[str]) -> list[Example]:
        label = "safe" if name in CONTRASTS else "unsafe"
        return [
            Example(f"{name}:{split}", Chat.from_text(name), cast(Any, label), source=name)
            for split in splits
        ]


def test_what_ships_is_trained_on_no_prompt_that_is_kept_for_measuring() -> None:
    kept = {e.id for e in (*written.load(), *starter.load()) if e.split != "train"}
    assert kept
    learnt = prompts(cast(DemurData, PlantedData()))
    ids = [example.id for example in learnt]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & kept
    public = {example.id for example in learnt if example.source in (*CONTRASTS, *REQUESTS)}
    assert public == {f"{name}:train" for name in (*CONTRASTS, *REQUESTS)}
    assert all(e.is_look_alike or e.label == "unsafe" for e in learnt)
    assert not {example.id for example in with_reply()} & kept


def test_what_ships_is_trained_on_no_set_that_is_for_measuring_only() -> None:
    with pytest.raises(DataError, match="coconot_pref is for measuring only"):
        prompts(cast(DemurData, PlantedData(may_ship=False)))

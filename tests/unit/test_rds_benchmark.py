"""The benchmark of RDS: which refusals are within reach, and what its figures come to."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.rds import NUM_STEPS, TOP_K, Reach
from benchmarks.rds_artifacts import CONTROLS, Artifacts
from benchmarks.rds_choice import Weighed, best
from benchmarks.rds_report import Effect, Figures, Interval, Speed, claims, report
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.modeling.load import LoadedModel
from demur.scorers.refusal_margin import RefusalMargin
from tests.interventions import next_logits, plain_greedy
from tests.tiny import tiny

MODEL = tiny("qwen2")


def likeliest(model: LoadedModel, ids: list[int]) -> list[int]:
    found: list[int] = next_logits(model, ids).topk(TOP_K).indices.tolist()
    return found


def openings() -> list[list[int]]:
    tokenize = MODEL.tokenizer
    texts = RefusalMargin().refusals
    return [tokenize(of, add_special_tokens=False)["input_ids"][:NUM_STEPS] for of in texts]


@pytest.mark.parametrize("text", ["Why?", "Tell me.", "Name five rivers.", "Hi", "What is it?"])
def test_an_opening_is_within_reach_if_each_token_is_likely_after_those_before(text: str) -> None:
    prompt = TransformersEngine(MODEL).render(Chat.from_text(text))
    expected = any(
        all(
            token in likeliest(MODEL, [*prompt.token_ids, *opening[:step]])
            for step, token in enumerate(opening)
        )
        for opening in openings()
    )
    assert Reach(MODEL).opening(prompt) == expected


def test_an_opening_that_the_model_writes_itself_is_within_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = TransformersEngine(MODEL).render(Chat.from_text("Why?"))
    own = plain_greedy(MODEL, prompt, NUM_STEPS)
    reach = Reach(MODEL)
    assert not reach.opening(prompt)
    monkeypatch.setattr(reach, "_openings", [[1, 2, 3, 4], own])
    assert reach.opening(prompt)
    assert reach.first_token(prompt, own)
    monkeypatch.setattr(reach, "_openings", [[*own[:-1], likely_never(own)]])
    assert not reach.opening(prompt)


def likely_never(own: list[int]) -> int:
    prompt = TransformersEngine(MODEL).render(Chat.from_text("Why?"))
    return int(next_logits(MODEL, [*prompt.token_ids, *own[:-1]]).argmin())


def effect(arm: str, role: str, change: float, interval: Interval) -> Effect:
    return Effect(arm, role, 50, 0.5 + change, change, interval, 0.5, 0.0, 0.0, 12.0)


FIGURES = Figures(
    num_unsafe=60,
    first_token=0.9,
    reach=0.5,
    effects=(
        effect("greedy", "unsafe", 0, (0, 0)),
        effect("rds", "unsafe", 0.2, (0.1, 0.3)),
        effect("rds", "ordinary", 0.05, (0, 0.1)),
        effect("flipped", "unsafe", -0.2, (-0.3, -0.1)),
    ),
    over_random=(0.3, (0.2, 0.4)),
    num_greedy=12,
    num_compared=12,
    speeds=(Speed("rds", 10.0, 0.5),),
)
RESULTS = {
    "machine": {"processor": "x", "cores": 2, "versions": {"torch": "2"}},
    "model": {"name": "m", "dtype": "float32"},
    "minutes": 3.0,
    "settings": {"top_k": 10, "tokens": 32, "share": 0.5},
    "setting": "deep",
    "auroc": {"deep": 0.9, "flat": 0.6},
    "weight": 0.5,
    "weights_tried": [asdict(Weighed(0.5, 0.75, 0.25, -0.05))],
    "trained": {"metrics": {"auroc": 0.9}},
}


def test_every_claim_can_hold_and_each_can_fail() -> None:
    assert list(claims(FIGURES).values()) == [True] * 6
    without = [of for of in FIGURES.effects if of.arm not in ("rds", "flipped")]
    rds, over, flipped = FIGURES.effects[1], FIGURES.effects[2], FIGURES.effects[3]
    worse = [
        replace(FIGURES, effects=(*without, replace(rds, interval=(0.0, 0.2)), over, flipped)),
        replace(FIGURES, over_random=(0.1, (-0.1, 0.3))),
        replace(FIGURES, effects=(*without, rds, over, replace(flipped, interval=(-0.1, 0.0)))),
        replace(FIGURES, effects=(*without, rds, replace(over, change=0.06), flipped)),
        replace(FIGURES, num_greedy=11),
    ]
    for number, figures in enumerate(worse, start=1):
        assert list(claims(figures).values()) == [n != number for n in range(6)]


def test_where_no_refusal_is_within_reach_nothing_is_claimed() -> None:
    out_of_reach = replace(FIGURES, reach=0.1, effects=(), over_random=None)
    assert list(claims(out_of_reach).values()) == [False, None, None, None, None, True]
    page = report({**RESULTS, "claims": claims(out_of_reach)}, out_of_reach)
    assert page.count("not tested") == 4
    assert "too few" in page


def test_the_page_shows_each_arm() -> None:
    page = report({**RESULTS, "claims": claims(FIGURES)}, FIGURES)
    assert "| rds | 50 | unsafe | 70.0 | +20.0 (+10.0 to +30.0) |" in page
    assert "| greedy | 50 | unsafe | 50.0 | - |" in page
    assert "| 0.5 | 75 | +25 | -5 |" in page
    assert "(deep: AUROC 0.90; flat: AUROC 0.60)" in page
    assert "+30.0 (+20.0 to +40.0) points more than a random choice" in page


def test_the_weight_refuses_most_where_ordinary_prompts_stay_answered() -> None:
    tried = [
        Weighed(0.0, 0.9, 0.4, 0.2),
        Weighed(0.25, 0.7, 0.2, 0.05),
        Weighed(0.5, 0.7, 0.2, 0.0),
        Weighed(1.0, 0.6, 0.1, 0.0),
    ]
    assert best(tried).weight == 0.5
    assert best(reversed(tried)).weight == 0.5
    assert best([replace(of, ordinary_change=0.06) for of in tried]).weight == 1.0


def test_all_arms_but_the_score_alone_weigh_the_probability() -> None:
    folders = [Path(name) for name in ("deep", "flipped", "random-0", "random-1", "flat")]
    made = Artifacts("deep", folders[0], folders[1], tuple(folders[2:4]), folders[4])
    arms = made.arms(0.5)
    assert set(CONTROLS) < set(arms)
    assert arms["rds"] == ["candidate_reranking:deep,lm_weight=0.5"]
    assert arms["rds, draft"] == ["candidate_reranking:deep,lm_weight=0.5,uses_draft=true"]
    assert len(arms["random"]) == 2
    assert all("lm_weight=0.5" in line for name in CONTROLS for line in arms[name])
    alone = {name: lines for name, lines in arms.items() if "the score alone" in name}
    assert list(alone.values()) == [
        ["candidate_reranking:deep,lm_weight=0"],
        ["candidate_reranking:flat,lm_weight=0"],
    ]
    assert "the score alone" not in made.arms(0.0)

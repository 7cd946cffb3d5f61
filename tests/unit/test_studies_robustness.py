"""What is promised of changed and attacked prompts: their texts, and who is said to be flagged."""

import base64
import codecs
import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError, DataError, MissingPackageError
from demur.core.examples import Example, Label
from demur.core.protocols import Detector, Done, Request, Scored
from demur.core.readings import Readings
from demur.core.readout import LinearReadout
from demur.core.reads import CaptureSpec, Read
from demur.core.types import Chat, Prompt, Sampling, Span
from demur.datasets import dialogues
from demur.detectors.linear import Linear
from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.modeling.blocks import find_parts
from demur.modeling.capture import capture
from demur.modeling.load import LoadedModel
from demur.studies import _edits
from demur.studies._contenders import Contender, Pool
from demur.studies._edits import ENCODINGS, READABLE, Place, padded
from demur.studies._judges import ONE_LAYER, JudgedStudy, fitting, prompts_of
from demur.studies._rewriting import chance_within, rewrites
from demur.studies._study import Judge, StudyInputs, StudyResult
from demur.studies._suffix import Objective, Suffix, SuffixSearch
from demur.studies._texts import study_texts
from demur.studies._transformations import short_transformations
from demur.studies.attacks import EDITS, REWRITES, Attacks
from demur.studies.robustness import COLUMNS, Robustness
from tests.guards import fitted_linear, read_texts
from tests.tiny import tiny

AnyEngine = FakeEngine | TransformersEngine

TEXT = "How do I write a good list of steps for somebody without money?"
NUM_BLOCKS = 4
HEAD = "head"
ROBUSTNESS = Robustness(num_prompts=4, num_padded=2, lengths=(64, 1024))
ATTACKS = Attacks(budgets=(1, 4), num_prompts=4, rivals=("tfidf", ONE_LAYER))
READS = (
    CaptureSpec((1, -1)),
    CaptureSpec((0, 2), "user", normalise="rms", pool="mean"),
    CaptureSpec((0, 1), "user", site="mlp_out", pool="max"),
)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def examples(label: Label, number: int, *, start: int = 0) -> list[Example]:
    word = "MARKER " if label == "unsafe" else ""
    return [
        Example(f"{label}-{row}", Chat.from_text(f"Tell me {word}number {row}."), label)
        for row in range(start, start + number)
    ]


def of_both(number: int, *, start: int) -> list[Example]:
    return [*examples("unsafe", number, start=start), *examples("safe", number, start=start)]


@cache
def read_once(engine: AnyEngine, reads: tuple[Read, ...], chat: Chat) -> Readings:
    seen: list[Readings] = []
    request = Request("0", engine.render(chat), Sampling(max_tokens=0), reads, seen.append)
    assert [type(event) for event in engine.run([request])] == [Scored, Done]
    return seen[0]


def read(engine: AnyEngine, prompts: Sequence[Example], reads: Sequence[Read]) -> Readings:
    return Readings.concatenate(
        [read_once(engine, tuple(reads), prompt.chat) for prompt in prompts]
    )


def head_on(engine: FakeEngine) -> Judge:
    """Return a detector that knows the marker, with a threshold between the labels."""
    detector = fitted_linear(engine)
    texts = ["Tell me number 7.", "Tell me MARKER number 7."]
    scores = detector.decision_function(read_texts(engine, detector.reads, texts))
    return Judge(HEAD, detector, float(scores.mean()))


def inputs_on(engine: AnyEngine, judge: Judge) -> StudyInputs:
    return StudyInputs(
        read=partial(read, engine),
        num_blocks=NUM_BLOCKS,
        train=of_both(12, start=0),
        val=of_both(8, start=100),
        tests={"test_id": of_both(6, start=200)},
        engine=engine,
        judges=(judge,),
    )


@pytest.fixture(scope="module")
def inputs() -> StudyInputs:
    engine = FakeEngine(num_layers=NUM_BLOCKS)
    return inputs_on(engine, head_on(engine))


@pytest.fixture(scope="module")
def robustness(inputs: StudyInputs) -> StudyResult:
    return ROBUSTNESS.run(inputs)


@pytest.fixture(scope="module")
def attacks(inputs: StudyInputs) -> StudyResult:
    return ATTACKS.run(inputs)


def cells(result: StudyResult, column: str, **where: object) -> list[Any]:
    return [
        row[column]
        for row in result.rows
        if all(row[name] == value for name, value in where.items())
    ]


# Texts


def test_there_are_twenty_system_prompts() -> None:
    assert len(set(study_texts().system_prompts)) == 20


def test_every_template_has_one_place_for_the_prompt() -> None:
    texts = study_texts()
    for template in (*texts.wrappers.values(), *texts.framings.values()):
        assert template.count("{text}") == 1


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_same_for_the_same_draw_and_changes_the_text(name: str) -> None:
    edited = EDITS[name](TEXT, generator())
    assert edited == EDITS[name](TEXT, generator())
    assert edited != TEXT


def test_base64_and_rot13_hold_the_text() -> None:
    coded = ENCODINGS["base64"](TEXT, generator()).split(": ")[1]
    assert base64.b64decode(coded).decode() == TEXT
    turned = ENCODINGS["ROT13"](TEXT, generator()).split(": ")[1]
    assert codecs.decode(turned, "rot13") == TEXT


def test_a_text_in_pieces_can_be_joined_again() -> None:
    parts = ENCODINGS["in pieces"](TEXT, generator()).split('"')
    assert f"{parts[1]} {parts[3]}" == TEXT


def test_random_case_changes_case_only() -> None:
    assert READABLE["random case"](TEXT, generator()).lower() == TEXT.lower()


def test_typos_leave_the_first_letter_of_each_word() -> None:
    edited = _edits.typos(TEXT, generator())
    assert [word[0] for word in edited.split()] == [word[0] for word in TEXT.split()]


def test_only_words_with_synonyms_are_replaced() -> None:
    known = study_texts().synonyms
    edited = _edits.synonyms("Kindly make stairs", generator())
    assert edited in {f"Kindly {other} stairs" for other in (*known["make"], "make")}


@pytest.mark.parametrize(("place", "share"), [("start", 0.0), ("middle", 0.5), ("end", 1.0)])
def test_padding_has_its_length_and_the_prompt_in_its_place(place: Place, share: float) -> None:
    words = padded("PROMPT", generator(), num_words=2500, place=place).split()
    assert len(words) == 2501
    assert words.index("PROMPT") == round(share * 2500)


def test_a_truncated_prompt_keeps_the_words_that_it_should() -> None:
    chat = Chat.from_text("one two three four")
    texts = {t.name: t.change(chat, generator()).last_user_text for t in short_transformations()}
    assert texts["first half"] == "one two"
    assert texts["first three quarters"] == "one two three"
    assert texts["last half"] == "three four"


def test_system_prompts_leave_the_user_alone() -> None:
    chat = Chat.from_text(TEXT)
    systems = [t for t in short_transformations() if t.family == "system prompt"]
    changed = [t.change(chat, generator()) for t in systems]
    assert [of.messages[0].content for of in changed] == list(study_texts().system_prompts)
    assert {of.last_user_text for of in changed} == {TEXT}


def test_fewer_rewrites_are_the_first_of_more() -> None:
    few, many = (rewrites(TEXT, n, encoded_share=0.3, seed=(1, 2)) for n in (3, 9))
    assert many[:3] == few
    assert len({of.text for of in many}) > 6


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rewrites_are_readable_unless_they_are_encoded(share: float) -> None:
    found = rewrites(TEXT, 8, encoded_share=share, seed=(0,))
    assert {of.is_readable for of in found} == {share == 0.0}


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.5"):
        rewrites(TEXT, 1, encoded_share=1.5, seed=(0,))


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_the_chance_within_a_budget_is_that_of_all_draws(budget: int) -> None:
    evades = [True, False, False, True, False]
    draws = [any(draw) for draw in combinations(evades, budget)]
    found = chance_within(budget, np.array([5]), np.array([2]))
    assert found[0] == pytest.approx(np.mean(draws))


# Dialogues


def test_dialogues_come_in_pairs_that_differ_in_the_request_only() -> None:
    pairs: dict[str, list[Example]] = {}
    for example in dialogues.load():
        pairs.setdefault(example.group_key, []).append(example)
    assert len(pairs) == 24
    for first, second in pairs.values():
        assert {first.label, second.label} == {"unsafe", "safe"}
        assert [m.role for m in first.chat.messages] == [m.role for m in second.chat.messages]
        differing = [
            a.role for a, b in zip(first.chat.messages, second.chat.messages, strict=True) if a != b
        ]
        assert set(differing) == {"tool" if first.kind == "tool result" else "user"}
        assert (len(differing) > 1) == ("spread" in str(first.kind))


def test_the_shape_of_a_dialogue_is_that_of_its_name() -> None:
    shapes = Counter(str(example.kind) for example in dialogues.load())
    assert len(shapes) == 10
    for example in dialogues.load():
        roles = [message.role for message in example.chat.messages]
        if example.kind == "tool result":
            assert roles == ["user", "assistant", "tool"]
        else:
            assert roles.count("user") == int(str(example.kind)[0])
            assert roles[-1] == "user"


# Judges


def test_an_ensemble_flags_what_one_of_its_heads_flags(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=(ONE_LAYER,), partners=(ONE_LAYER,)).panel(inputs)
    prompts = [*of_both(4, start=300), *examples("unsafe", 4, start=400)]
    strict, lenient = panel.judges[0], replace(panel.judges[1], threshold=-1e9)
    for judges in (panel.judges, (strict, lenient)):
        margins = replace(panel, judges=judges).margins(inputs, prompts)
        scores = [
            judge.detector.decision_function(inputs.read(prompts, judge.detector.reads))
            >= judge.threshold
            for judge in judges
        ]
        np.testing.assert_array_equal(margins[f"{HEAD} + {ONE_LAYER}"] >= 0, scores[0] | scores[1])


def test_margins_are_counted_in_deviations_of_validation_scores(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=(), partners=()).panel(inputs)
    detector = panel.judges[0].detector
    scores = detector.decision_function(inputs.read(inputs.val, detector.reads))
    margins = panel.margins(inputs, inputs.val)[HEAD]
    np.testing.assert_allclose(margins, (scores - panel.judges[0].threshold) / scores.std())


def test_a_rival_is_used_at_one_percent_of_the_safe_validation_prompts(inputs: StudyInputs) -> None:
    panel = JudgedStudy(rivals=("tfidf",), partners=()).panel(inputs)
    safe = [example for example in inputs.val if example.label == "safe"]
    margins = panel.margins(inputs, safe)["tfidf"]
    assert (margins >= 0).sum() <= 1
    assert margins.max() == pytest.approx(0.0, abs=0.1)


def test_a_rival_whose_packages_are_missing_is_left_out_and_named(
    inputs: StudyInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Pool.fit

    def failing(pool: Pool, contender: Contender, *, seed: int) -> Detector:
        if contender.method == "tfidf":
            raise MissingPackageError("no words: pip install words")
        return fit(pool, contender, seed=seed)

    monkeypatch.setattr(Pool, "fit", failing)
    panel = JudgedStudy(rivals=("tfidf", ONE_LAYER), partners=("tfidf", ONE_LAYER)).panel(inputs)
    assert panel.names == (HEAD, ONE_LAYER, f"{HEAD} + {ONE_LAYER}")
    assert panel.left_out == ("tfidf was left out: no words: pip install words.",)


@pytest.mark.parametrize(
    ("rivals", "partners", "count", "part"),
    [
        ((), (), 0, "none was given"),
        (("tfidf",), ("mlp",), 1, "mlp"),
        ((), (), 2, "name of its own"),
    ],
)
def test_a_panel_that_makes_no_sense_is_refused(
    rivals: tuple[str, ...], partners: tuple[str, ...], count: int, part: str, inputs: StudyInputs
) -> None:
    with pytest.raises(ConfigError, match=part):
        JudgedStudy(rivals, partners).panel(replace(inputs, judges=inputs.judges * count))


def test_prompts_longer_than_the_context_do_not_fit(inputs: StudyInputs) -> None:
    prompts = [Example("short", Chat.from_text("a")), Example("long", Chat.from_text("a " * 600))]
    assert fitting(inputs, prompts).tolist() == [True, False]
    assert fitting(replace(inputs, engine=None), prompts).all()


def test_only_short_english_prompts_of_one_turn_are_taken(inputs: StudyInputs) -> None:
    kept = Example("kept", Chat.from_text("a b"), "unsafe")
    others = [
        replace(kept, chat=Chat.from_text("a b c")),
        replace(kept, chat=Chat.from_text("a b", system="c")),
        replace(kept, language="bn"),
        replace(kept, label="safe"),
    ]
    tests = {"one": [*others, kept]}
    assert prompts_of(replace(inputs, tests=tests), "unsafe", max_words=2) == [kept]
    with pytest.raises(DataError, match="no unsafe English prompt"):
        prompts_of(replace(inputs, tests={"one": others}), "unsafe", max_words=2)


# Robustness


def test_plain_prompts_and_those_under_a_system_prompt_are_told_apart(
    robustness: StudyResult,
) -> None:
    assert robustness.columns == COLUMNS
    own = {"detector": HEAD}
    assert cells(robustness, "recall", transformation="plain", **own) == [1.0]
    assert cells(robustness, "false_positives", transformation="plain", **own) == [0.0]
    assert cells(robustness, "recall_change", family="system prompt", **own) == [0.0] * 20


def test_what_hides_the_marker_is_seen_as_a_fall_of_recall(robustness: StudyResult) -> None:
    of_lower = {"transformation": "lower case", "detector": HEAD}
    assert cells(robustness, "recall_change", **of_lower) == [-1.0]
    assert cells(robustness, "recall_low", **of_lower) == [0.0]
    assert 0.2 < cells(robustness, "recall_high", **of_lower)[0] < 0.8  # of four prompts
    assert any("recall falls most under lower case (-1.000)" in of for of in robustness.findings)


def test_padding_that_the_context_cannot_take_is_left_out(robustness: StudyResult) -> None:
    names = cells(robustness, "transformation", family="padding", detector=HEAD)
    assert names == [
        f"padding of 64 tokens, prompt at the {place}" for place in ("start", "middle", "end")
    ]
    assert cells(robustness, "unsafe", family="padding", detector=HEAD) == [2, 2, 2]


def test_each_shape_of_a_dialogue_has_a_row(robustness: StudyResult) -> None:
    names = cells(robustness, "transformation", family="dialogue", detector=HEAD)
    assert len(names) == 11
    assert names[0] == "all dialogues"


def test_without_a_prompt_that_fits_there_are_no_rows_of_dialogues(inputs: StudyInputs) -> None:
    small = FakeEngine(num_layers=NUM_BLOCKS, max_tokens=20)
    study = Robustness(rivals=(), num_prompts=2, num_padded=0)
    result = study.run(replace(inputs, engine=small))
    assert not cells(result, "recall", family="dialogue")
    assert not cells(result, "recall", family="padding")


# Attacks


def test_an_attacker_gets_further_with_more_tries(attacks: StudyResult) -> None:
    for name in dict.fromkeys(row["detector"] for row in attacks.rows):
        first, more = cells(attacks, "evaded", attack=REWRITES, detector=name)
        assert first <= more


def test_the_whole_budget_is_spent_on_the_rewrites_of_each_prompt(
    inputs: StudyInputs, attacks: StudyResult
) -> None:
    judge = inputs.judges[0]
    unsafe = prompts_of(inputs, "unsafe", max_words=40)
    evaded = []
    for row, example in enumerate(unsafe[place] for place in (0, 1, 3, 4)):
        tried = rewrites(example.chat.last_user_text, 4, encoded_share=0.2, seed=(0, row))
        prompts = [replace(example, chat=Chat.from_text(of.text)) for of in tried]
        scores = judge.detector.decision_function(inputs.read(prompts, judge.detector.reads))
        evaded.append((scores < judge.threshold).any())
    of_all = cells(attacks, "evaded", attack=REWRITES, detector=HEAD, budget=4)
    assert of_all == [pytest.approx(np.mean(evaded))]
    assert of_all[0] > 0


def test_nothing_evades_an_ensemble_that_does_not_evade_both_heads(attacks: StudyResult) -> None:
    for attack in dict.fromkeys(row["attack"] for row in attacks.rows):
        both, head, words = (
            np.array(cells(attacks, "evaded", attack=attack, detector=name))
            for name in (f"{HEAD} + tfidf", HEAD, "tfidf")
        )
        assert (both <= np.minimum(head, words)).all()


def test_an_edit_by_itself_is_told_of_unsafe_and_safe_prompts(attacks: StudyResult) -> None:
    assert cells(attacks, "evaded", attack="none", detector=HEAD) == [0.0]
    assert cells(attacks, "evaded", attack="base64", detector=HEAD) == [1.0]
    assert cells(attacks, "safe_flagged", attack="base64", detector=HEAD) == [0.0]
    assert {row["attack"] for row in attacks.rows} >= set(EDITS)


def test_the_same_inputs_give_the_same_answer(
    inputs: StudyInputs, robustness: StudyResult, attacks: StudyResult
) -> None:
    assert ROBUSTNESS.run(inputs) == robustness
    assert ATTACKS.run(inputs) == attacks


def test_without_gradients_no_suffix_is_searched(attacks: StudyResult) -> None:
    assert any(finding.startswith("No suffix was searched") for finding in attacks.findings)


@pytest.mark.parametrize("budgets", [(), (0, 3)])
def test_budgets_without_a_try_are_refused(budgets: tuple[int, ...], inputs: StudyInputs) -> None:
    with pytest.raises(ConfigError, match="budgets"):
        Attacks(budgets=budgets).run(inputs)


# The suffix


def readout() -> LinearReadout:
    draw = np.random.default_rng(3)
    weights = {spec: draw.standard_normal((2, 32)).astype(np.float32) for spec in READS}
    return LinearReadout(weights, bias=0.5)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny()


@pytest.fixture(scope="module")
def suffix(loaded: LoadedModel) -> Suffix:
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more"))
    return SuffixSearch(loaded, readout(), num_tokens=6, num_steps=6).run(prompt, seed=0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    loaded = tiny("gpt2")  # of doubles all through: the norms of others compute in float32
    model = copy.deepcopy(loaded.model).double()
    exact = LoadedModel(model, loaded.tokenizer, find_parts(model), loaded.model_id)
    user = Span("user", 1, 5)
    prompt = Prompt(Chat.from_text("any"), (3, 1, 4, 1, 5, 9, 2), (user,))
    objective = Objective(exact, readout(), prompt=prompt, answer_ids=[5, 9, 7], unit=2.0)
    ids, places = torch.tensor([prompt.token_ids]), slice(2, 5)
    gradient = objective.gradient(ids, places)
    embedding = model.get_input_embeddings()
    for place, token in ((0, 17), (1, 200), (2, 40)):
        step = torch.zeros_like(embedding(ids))
        step[0, places.start + place] = 1e-5 * embedding.weight[token]
        up, down = (objective.value(embedding(ids) + sign * step) for sign in (1, -1))
        slope = float(up - down) / 2e-5
        assert float(gradient[place, token]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_the_score_and_the_answer_are_those_of_a_plain_pass(loaded: LoadedModel) -> None:
    prompt = TransformersEngine(loaded).render(Chat.from_text(TEXT))
    answer = [70, 80, 90]
    objective = Objective(loaded, readout(), prompt=prompt, answer_ids=answer, unit=1.0)
    score, likelihood = objective.measure(torch.tensor([prompt.token_ids]))
    expected = readout().score(capture(loaded.parts, [prompt], READS))
    assert float(score) == pytest.approx(expected[0], rel=1e-4)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([[*prompt.token_ids, *answer]])).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    mean = np.mean([float(row[token]) for row, token in zip(rows, answer, strict=True)])
    assert float(likelihood) == pytest.approx(mean, rel=1e-4)


def test_a_search_lowers_the_objective_step_by_step(suffix: Suffix) -> None:
    assert len(suffix.objective) == 7
    assert list(suffix.objective) == sorted(suffix.objective, reverse=True)
    assert suffix.objective[-1] < suffix.objective[0]
    assert suffix.score[1] < suffix.score[0]


def test_a_suffix_is_text_that_gives_its_score_when_it_is_read_again(
    loaded: LoadedModel, suffix: Suffix
) -> None:
    assert suffix.text.isascii()
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more" + suffix.text))
    again = readout().score(capture(loaded.parts, [prompt], READS))
    assert again[0] == pytest.approx(suffix.score[1], rel=1e-4)


def test_a_search_leaves_no_hook_behind(loaded: LoadedModel) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in loaded.model.modules())

    before = hooks()  # transformers itself leaves some, where hidden states were asked of it
    prompt = TransformersEngine(loaded).render(Chat.from_text("Tell me more"))
    SuffixSearch(loaded, readout(), num_tokens=2, num_steps=1).run(prompt, seed=0)
    assert hooks() == before


def attack_on(loaded: LoadedModel, *, threshold: float) -> StudyResult:
    weights = {f"weights.{row}": readout().weights[spec] for row, spec in enumerate(READS)}
    detector = Linear(READS).load_state({**weights, "bias": np.ones(1)})
    judge = Judge(HEAD, detector, threshold)
    study = Attacks(rivals=(), partners=(), budgets=(1,), num_prompts=1, suffix_steps=1)
    inputs = inputs_on(TransformersEngine(loaded), judge)
    return study.run(replace(inputs, val=of_both(1, start=100)))


def test_a_suffix_is_read_by_all_detectors(loaded: LoadedModel) -> None:
    result = attack_on(loaded, threshold=-1e6)
    assert cells(result, "prompts", attack="suffix of 8 tokens") == [1]
    assert cells(result, "evaded", attack="suffix of 8 tokens") == [0.0]
    assert cells(result, "budget", attack="suffix of 8 tokens") == [16]
    assert any(
        finding.startswith("Suffixes for 1 flagged prompts move") for finding in result.findings
    )


def test_no_suffix_is_searched_for_prompts_that_get_past_anyway(loaded: LoadedModel) -> None:
    result = attack_on(loaded, threshold=1e6)
    assert any("no flagged prompt" in finding for finding in result.findings)

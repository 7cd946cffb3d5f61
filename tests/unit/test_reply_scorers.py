"""The classifier of replies, agreement, collapse, and what a model is asked about a reply."""

import numpy as np
import pytest
import torch

from demur.core.errors import ConfigError, DataError
from demur.core.outcomes import COLLAPSED, Answered
from demur.core.types import Chat
from demur.datasets import pairs, replies
from demur.modeling.chat import ChatRenderer
from demur.modeling.likelihood import Likelihood
from demur.scorers.agreement import DISAGREEMENT, Agreement
from demur.scorers.collapse import Collapse
from demur.scorers.perplexity import Perplexity
from demur.scorers.refusal_margin import RefusalMargin
from demur.scorers.reply_classifier import ReplyClassifier
from demur.trainers._refusals import texts
from tests.tiny import tiny

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure, mix flour and water, then bake."


def answers(*replies: str) -> list[Answered]:
    return [Answered.from_text("How do I bake bread?", reply) for reply in replies]


def toy() -> ReplyClassifier:
    replies = answers(*(f"red {n}" for n in range(8)), *(f"blue {n}" for n in range(8)))
    return ReplyClassifier().fit(replies, np.arange(16) < 8, source=np.array(["a", "b"] * 8))


def test_the_classifier_that_ships_tells_plain_cases() -> None:
    found = ReplyClassifier().judge(answers(REFUSAL, ANSWER))
    assert [judgement.outcome for judgement in found] == ["refused", "complied"]


def test_the_classifier_that_ships_tells_replies_that_responders_learn() -> None:
    of_prompts = [*replies.load("val"), *pairs.load("val")]
    written = [of for of in of_prompts if of.safe_response]
    found = ReplyClassifier().judge([Answered(of.chat, str(of.safe_response)) for of in written])
    for label, outcome in (("unsafe", "refused"), ("safe", "complied")):
        of_label = [j for j, of in zip(found, written, strict=True) if of.label == label]
        assert sum(j.outcome == outcome for j in of_label) > 0.9 * len(of_label) > 50

    shipped = [text for of_language in texts().values() for text in of_language]
    told = ReplyClassifier().judge(answers(*shipped, *(f"Sorry. {text}" for text in shipped)))
    assert {judgement.outcome for judgement in told} == {"refused"}


def test_what_answers_behind_a_refusal_is_no_refusal() -> None:
    written = [of for of in (*replies.load("val"), *pairs.load("val")) if of.safe_response]
    opening = "I'm sorry, but I can't help with that. "
    late = [f"{opening}{of.safe_response}" for of in written if of.label == "safe"]
    outcomes = [judgement.outcome for judgement in ReplyClassifier().judge(answers(*late))]
    assert outcomes.count("complied") > 0.8 * len(outcomes)


def test_a_fitted_classifier_goes_by_what_it_learnt_and_by_nothing_else() -> None:
    found = toy().judge(answers("all red", "all blue", REFUSAL))
    assert [judgement.outcome for judgement in found[:2]] == ["complied", "refused"]
    assert abs(found[2].score or 0) < abs(found[0].score or 0)


def test_a_loaded_classifier_scores_as_the_one_it_was_saved_from() -> None:
    fitted = toy()
    loaded = ReplyClassifier().load_state(fitted.state())
    assert loaded.judge(answers("all red", ANSWER)) == fitted.judge(answers("all red", ANSWER))


def test_log_odds_near_to_zero_are_unclear_if_asked_for() -> None:
    fitted = ReplyClassifier(min_log_odds=100.0).load_state(toy().state())
    assert fitted.judge(answers("all red"))[0].outcome == "unclear"


def test_a_classifier_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(DataError, match="complied and that refused"):
        ReplyClassifier().fit(answers("a", "b"), np.ones(2), source=np.array(["s", "s"]))
    with pytest.raises(DataError, match="expected as many"):
        ReplyClassifier().fit(answers("a"), np.ones(2), source=np.array(["s", "s"]))
    with pytest.raises(DataError, match="expected weights"):
        ReplyClassifier().load_state({"weights": np.zeros(3), "bias": np.zeros(1)})
    with pytest.raises(ConfigError, match="is not fitted"):
        ReplyClassifier(num_bits=4).judge(answers("a"))


def test_where_two_labellers_differ_the_reply_is_unclear() -> None:
    found = Agreement(classifier=toy()).judge(answers("I can't help: red", "I can't help: blue"))
    assert [judgement.outcome for judgement in found] == ["unclear", "refused"]
    assert found[0].reason == DISAGREEMENT


@pytest.mark.parametrize(
    "reply",
    [
        "the the the " * 30,
        "I will not. " * 20,
        "a" * 200,
        "\ufffd\ufffd\ufffd hello \ufffd",
        "%$#@ &*() !!! ??? {}[] <> ~~",
        "\u597d" * 120,
    ],
)
def test_loops_and_broken_characters_have_collapsed(reply: str) -> None:
    (found,) = Collapse().judge(answers(reply))
    assert (found.outcome, found.reason) == ("unclear", COLLAPSED)


@pytest.mark.parametrize(
    "reply",
    [
        REFUSAL,
        "No.",
        "No no no!",
        "1. Mix flour.\n2. Add water.\n3. Wait.\n4. Fold the dough.\n5. Bake it for an hour.",
        "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
        "\u9762\u5305\u9700\u8981\u9762\u7c89\u3001\u6c34\u548c\u76d0\u3002",
    ],
)
def test_short_lists_code_and_other_scripts_have_not_collapsed(reply: str) -> None:
    assert not Collapse().has_collapsed(reply)


@pytest.mark.parametrize("replies", [["Yes, sure.", "No", "A"], ["Yes, sure."], ["A"]])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3", "gpt2"])
def test_replies_are_as_likely_as_the_model_says_in_one_pass(
    architecture: str, replies: list[str]
) -> None:
    loaded, chat = tiny(architecture), Chat.from_text("Hello there, how are you?")
    renderer = ChatRenderer(loaded.tokenizer, name="tiny")
    prompt = renderer.render(chat)
    for reply, found in zip(replies, Likelihood(loaded).log_probs(chat, replies), strict=True):
        ids = list(renderer.with_reply(prompt, reply).token_ids)
        logits = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(logits[p - 1, ids[p]]) for p in range(len(prompt), len(ids))]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_margin_is_the_difference_of_mean_log_probabilities() -> None:
    scorer = RefusalMargin(refusals=("No.", "Never"), compliances=("Yes",), loaded=tiny())
    chat = Chat.from_text("Will you?")
    no, never, yes = Likelihood(tiny()).mean_log_probs(chat, ["No.", "Never", "Yes"])
    assert scorer.margins([chat])[0] == pytest.approx((no + never) / 2 - yes)


def test_the_margin_does_not_read_the_reply() -> None:
    scorer = RefusalMargin(loaded=tiny())
    first, second = scorer.judge(answers(REFUSAL, ANSWER))
    assert first == second


def test_openings_that_are_empty_are_refused() -> None:
    with pytest.raises(ConfigError, match="refusals"):
        RefusalMargin(refusals=())
    with pytest.raises(ConfigError, match="compliances"):
        RefusalMargin(compliances=("Yes", " "))


def test_perplexity_is_that_of_the_reply_after_its_chat() -> None:
    (found,) = Perplexity(loaded=tiny()).judge(answers(ANSWER))
    chat = Chat.from_text("How do I bake bread?")
    nats = -Likelihood(tiny()).mean_log_probs(chat, [ANSWER])[0]
    assert found.score == pytest.approx(np.exp(nats))
    assert found.parts["num_tokens"] == len(ANSWER)


def test_a_reply_beyond_the_context_is_an_error_of_that_reply_alone() -> None:
    found = Perplexity(loaded=tiny()).judge(answers("long " * 200, ANSWER))
    assert "longer than the context" in str(found[0].error)
    assert found[1].score is not None

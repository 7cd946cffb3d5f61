"""What the DeRTa benchmark trains on and measures with; harmful replies are for measuring only.

Trained on: questions of gptfuzz_responses (MIT) with replies that people labelled harmful; others,
of sets kept for training (MIT, Apache-2.0), with the model's own greedy replies that both labellers
say comply; refusals that ship with demur; and safe prompts with the model's own answers.
Measured with: harmful replies of xstest_completions (CC-BY-4.0) and jbb_artifacts (MIT). No
question is in both. The adapters stay in the user's cache and are never shipped.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.arms import MAX_CHARACTERS, Arms, drawn, drawn_sets, with_own_answers
from demur.core.examples import Example
from demur.core.types import Chat
from demur.datasets import written
from demur.datasets.demur_data import DemurData
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel
from demur.trainers._refusals import ShippedRefusals

REPLIES_A_QUESTION = 3
OWN: Mapping[str, int] = {"advbench": 150, "derta_malicious": 100, "harmfulqa": 150}
"""Unsafe prompts that the model answers itself, by set."""
NUM_SAFE = 200
SAFE: Mapping[str, int] = {
    "coconot_pref": 150,
    "selfinstruct_seed": 20,
    "certified_safe": 80,
    "gpteacher_code": 60,
    "gsm8k_train": 40,
}
"""Safe prompts beside those written for demur, by set."""
LEAST_TOKENS = 40
"""Of a harmful reply that is measured with: 32 are read, and some are left to go on with."""
MEASURED = {"xstest_completions": ("responses_test", 110), "jbb_artifacts": ("test_ood", 110)}
FAMILIES = ("code_attack", "self_cipher", "completion_attack")


def to_train(data: DemurData, arms: Arms, *, share: float) -> list[Example]:
    """Return unsafe questions with a refusal and a harmful reply, and safe ones with an answer.

    Args:
        data: The collection.
        arms: Of the model, which answers prompts.
        share: Of them, over 0 to 1.
    """
    unsafe = with_both_replies(data)
    safe = drawn(
        [e for e in written.load("train") if e.label == "safe" and e.language in (None, "en")],
        NUM_SAFE,
        share=share,
    )
    safe += drawn_sets(data, SAFE, "train", "safe", share=share)
    own = with_own_replies(data, arms, share=share)
    return [*drawn(unsafe, len(unsafe), share=share), *own, *with_own_answers(arms, safe)]


def with_own_replies(data: DemurData, arms: Arms, *, share: float) -> list[Example]:
    """Return unsafe questions that the model complies with, each with its reply and a refusal."""
    asked = drawn_sets(data, OWN, "train", "unsafe", share=share)
    chats = [example.chat for example in asked]
    replies = arms.answers.base(chats)
    found = arms.labelling.label(chats, replies)
    shipped = ShippedRefusals(seed=1)
    return [
        replace(example, safe_response=shipped.next(example), harmful_response=reply.text)
        for example, reply, outcome, is_collapsed in zip(
            asked, replies, found.outcome, found.collapsed, strict=True
        )
        if outcome == "complied" and not is_collapsed
    ]


def with_both_replies(data: DemurData) -> list[Example]:
    """Return unsafe questions, each with harmful replies to it and a refusal for each of them."""
    of_question: dict[str, list[Example]] = defaultdict(list)
    for example in data.load("gptfuzz_responses", ("responses_train",)):
        if example.response_label == "unsafe" and example.response:
            of_question[example.group_key].append(example)
    shipped, generator = ShippedRefusals(seed=0), np.random.default_rng(0)
    found = []
    for question in sorted(of_question):
        order = generator.permutation(len(of_question[question]))[:REPLIES_A_QUESTION]
        for example in (of_question[question][row] for row in order.tolist()):
            refusal = shipped.next(example)
            found.append(
                replace(
                    example,
                    response=None,
                    response_label=None,
                    safe_response=refusal,
                    harmful_response=example.response,
                )
            )
    return found


@dataclass(frozen=True)
class Begun:
    """A question with a harmful reply to it, of which a beginning is given to the model."""

    chat: Chat
    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    group: str


def to_measure(data: DemurData, loaded: LoadedModel, *, share: float) -> list[Begun]:
    """Return questions with harmful replies that nothing was trained on."""
    renderer, found = ChatRenderer.of(loaded), []
    for name, (split, number) in MEASURED.items():
        harmful = [
            example
            for example in data.load(name, (split,))
            if example.response_label == "unsafe"
            and len(example.chat.last_user_text) <= MAX_CHARACTERS
        ]
        begun = [_begun(loaded, renderer, example) for example in harmful]
        long_enough = [of for of in begun if len(of.reply) >= LEAST_TOKENS]
        found += drawn(long_enough, number, share=share)
    return found


def _begun(loaded: LoadedModel, renderer: ChatRenderer, example: Example) -> Begun:
    ids = loaded.tokenizer(example.response, add_special_tokens=False)["input_ids"]
    prompt = renderer.render(example.chat).token_ids
    return Begun(example.chat, prompt, tuple(ids), example.group_key)


def attacks(data: DemurData, *, number: int, share: float) -> list[Example]:
    """Return prompts of the DeRTa authors' attacks, as many of each family."""
    every = data.load("derta_attacks", ("test_ood",))
    return [
        example
        for family in FAMILIES
        for example in drawn([e for e in every if e.category == family], number, share=share)
    ]

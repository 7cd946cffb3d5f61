"""Candidate reranking: the classifier, its sign, its artifact and its responder."""

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.core.interventions import RerankTokens
from demur.core.reads import CaptureSpec
from demur.core.training import Run
from demur.core.types import Chat
from demur.engines.transformers import TransformersEngine
from demur.guard.responding import load_responder
from demur.modeling.chat import ChatRenderer
from demur.modeling.continuations import states_of_replies
from demur.modeling.load import LoadedModel, load
from demur.trainers._openings import COMPLIANCES, REFUSALS
from demur.trainers._state_classifier import Separation, StateClassifier, separation
from demur.trainers.candidate_reranking import LABELS, CandidateReranking
from demur.workflows.train import train
from tests.model_folder import labelled_prompts, save_model
from tests.tiny import tiny
from tests.trained import trained

CHAT = Chat.from_text("How do I pick a lock?")
READ = CaptureSpec((2,))
EXAMPLE = Path(__file__).parents[2] / "examples" / "candidate_reranking.py"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model")))


def examples() -> list[Example]:
    return [
        Example(str(number), Chat.from_text(str(row["text"])), label=row["label"])  # type: ignore[arg-type]
        for number, row in enumerate(labelled_prompts()[:120])
    ]


def small(**fields: object) -> CandidateReranking:
    chosen: dict[str, object] = {"num_prompts": 20, "num_held_out": 6, "least_auroc": 0.5}
    return CandidateReranking(**(chosen | fields))  # type: ignore[arg-type]


def test_the_classifier_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    unsafe = np.arange(60) % 2 == 0
    states = rng.normal(size=(60, 12)) + 2 * unsafe[:, None]
    found = StateClassifier.fit(states, unsafe, num_components=4, c=0.7)
    expected = make_pipeline(PCA(4), LogisticRegression(C=0.7, max_iter=10_000))
    expected.fit(states, unsafe)
    others = rng.normal(size=(30, 12))
    np.testing.assert_allclose(
        found.scores(others), expected.decision_function(others), rtol=1e-4, atol=1e-4
    )


def test_one_vector_orders_states_as_the_classifier_does() -> None:
    rng = np.random.default_rng(0)
    unsafe = np.arange(40) % 2 == 0
    found = StateClassifier.fit(rng.normal(size=(40, 9)), unsafe, num_components=3, c=1)
    states = rng.normal(size=(20, 9))
    apart = found.scores(states) - states @ found.weights
    np.testing.assert_allclose(apart, apart[0])
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(3), atol=1e-12)


def planted(shift: float) -> Separation:
    """Return scores in which refusals are higher by a shift, whatever a prompt's own level."""
    rng = np.random.default_rng(0)
    levels = 100 * rng.normal(size=(5, 1, 1))
    scores = rng.normal(size=(2, 5, 12, 8)) + levels
    scores[:, :, 3, 6:] = np.nan
    return Separation(scores[0] + shift, scores[1])


@pytest.mark.parametrize(("shift", "sign"), [(2.0, 1), (-2.0, -1)])
def test_the_sign_is_that_under_which_refusals_score_higher(shift: float, sign: int) -> None:
    assert small(least_auroc=0.55)._sign(planted(shift)) == sign
    assert planted(shift).gap() == pytest.approx(shift, abs=0.2)
    assert (planted(shift).auroc(7) > 0.5) == (sign == 1)


def test_scores_that_do_not_tell_refusals_are_an_error() -> None:
    same = Separation(planted(0).refusals, planted(0).refusals)
    with pytest.raises(DataError, match="cannot tell them apart"):
        small(least_auroc=0.55)._sign(same)


def test_a_prompts_own_level_does_not_count() -> None:
    assert planted(9.0).auroc() == 1
    assert planted(9.0).auroc(0) == 1


def test_states_of_replies_side_by_side_are_those_of_each_alone(model: LoadedModel) -> None:
    prompt = TransformersEngine(model).render(CHAT)
    replies = [[65, 66, 67, 68], [70], [71, 72]]
    found = states_of_replies(model, prompt, replies, READ)
    for states, reply in zip(found, replies, strict=True):
        ids = torch.tensor([[*prompt.token_ids, *reply]])
        with torch.inference_mode():
            whole = model.model(ids, output_hidden_states=True).hidden_states[3][0]
        np.testing.assert_allclose(states, whole[len(prompt) :], atol=1e-5)


def test_a_reply_that_leaves_the_context_is_refused() -> None:
    prompt = TransformersEngine(tiny()).render(CHAT)
    every: list[list[list[int]]] = [[[]], [[65] * 500]]
    for replies in every:
        with pytest.raises(DataError, match="at most 512 together"):
            states_of_replies(tiny(), prompt, replies, READ)


def tokens_of(model: LoadedModel, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_openings_are_scored_token_by_token() -> None:
    model = tiny()
    renderer = ChatRenderer(model.tokenizer, name="tiny")
    prompt = renderer.render(CHAT)
    rng = np.random.default_rng(0)
    classifier = StateClassifier.fit(
        rng.normal(size=(40, 32)), np.arange(40) % 2 == 0, num_components=4, c=1
    )
    told: list[int] = []
    found = separation(model, renderer, [prompt], READ, classifier, report=told.append)
    assert told == [1]
    for scores, texts in ((found.refusals, REFUSALS), (found.compliances, COMPLIANCES)):
        assert scores.shape == (1, 12, 8)
        for of_text, text in zip(scores[0], texts, strict=True):
            ids = [*prompt.token_ids, *tokens_of(model, text)[:8]]
            with torch.inference_mode():
                states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            expected = classifier.scores(states[3][0, len(prompt) :].double().numpy())
            np.testing.assert_allclose(of_text, expected, atol=1e-4)


def test_what_is_fitted_on_and_what_is_held_out_share_no_group() -> None:
    renderer = ChatRenderer(tiny().tokenizer, name="tiny")
    every = {
        label: {f"g{n}": renderer.render(Chat.from_text(f"{label} {n}")) for n in range(30)}
        for label in LABELS
    }
    fitted_on, held_out = small()._parted(every, 0)
    groups = [
        {prompt.chat.last_user_text.split()[1] for of in side.values() for prompt in of}
        for side in (fitted_on, held_out)
    ]
    assert not groups[0] & groups[1]
    assert {label: len(of) for label, of in held_out.items()} == {"unsafe": 6, "safe": 6}
    assert {label: len(of) for label, of in fitted_on.items()} == {"unsafe": 20, "safe": 20}
    assert small()._parted(every, 0) == (fitted_on, held_out)
    assert small()._parted(every, 1) != (fitted_on, held_out)


def test_too_few_prompts_are_refused(model_folder: str) -> None:
    rows = [e for e in examples() if e.label == "safe"]
    with pytest.raises(DataError, match="0 groups of unsafe prompts: expected at least 8"):
        small().train(rows, Run(model_folder))


def test_prompts_that_leave_no_room_for_a_reply_are_left_out(model_folder: str) -> None:
    rows = [
        replace(e, chat=Chat.from_text("word " * 200)) if e.label == "unsafe" else e
        for e in examples()
    ]
    with pytest.raises(DataError, match="0 groups of unsafe prompts"):
        small().train(rows, Run(model_folder))


@pytest.mark.parametrize("fields", [{}, {"layer": 2, "site": "block_out", "num_components": 2}])
def test_what_is_trained_is_what_the_responder_reranks_by(
    fields: dict[str, object], model_folder: str, tmp_path: Path
) -> None:
    outcome = train(small(**fields), examples(), Run(model_folder), tmp_path / "out")
    model = load(model_folder)
    responder = load_responder(f"candidate_reranking:{tmp_path / 'out'},top_k=3", model.model_id)
    rerank = responder.respond(CHAT, ())
    assert isinstance(rerank, RerankTokens)
    assert rerank.top_k == 3
    assert rerank.read == CaptureSpec(
        (fields.get("layer", -1),),  # type: ignore[arg-type]
        site=fields.get("site", "final_norm"),  # type: ignore[arg-type]
    )
    assert rerank.sign == outcome.metrics["sign"]
    assert rerank.draft is None
    tensors = outcome.tensors
    np.testing.assert_allclose(
        tensors["weights"], tensors["basis"].T @ tensors["coefficients"], rtol=1e-3, atol=1e-6
    )
    TransformersEngine(model).prepare([rerank])


def test_the_measured_auroc_is_the_one_under_the_sign(model_folder: str) -> None:
    metrics = small().train(examples(), Run(model_folder)).metrics
    assert metrics["auroc"] >= 0.5
    assert {f"auroc_token_{n}" for n in range(1, 9)} <= set(metrics)
    assert {"gap_unsafe", "gap_safe"} <= set(metrics)


def test_a_draft_is_trained_along_and_used_if_asked(model_folder: str, tmp_path: Path) -> None:
    trainer = small(draft=True, draft_replies=8, draft_tokens=3, draft_epochs=1)
    outcome = train(trainer, examples(), Run(model_folder), tmp_path / "out")
    assert len(outcome.curve) == 7
    assert 0 <= outcome.metrics["draft_agreement"] <= 1
    model = load(model_folder)
    line = f"candidate_reranking:{tmp_path / 'out'}"
    assert drafts_of(line, model) == 0
    assert drafts_of(f"{line},uses_draft=true", model) > 1


def drafts_of(line: str, model: LoadedModel) -> int:
    rerank = load_responder(line, model.model_id).respond(CHAT, ())
    assert isinstance(rerank, RerankTokens)
    TransformersEngine(model).prepare([rerank])
    return 0 if rerank.draft is None else len(rerank.draft.tensors)


def test_a_draft_that_is_not_there_is_an_error(model_folder: str, tmp_path: Path) -> None:
    train(small(), examples(), Run(model_folder), tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no draft"):
        load_responder(
            f"candidate_reranking:{tmp_path / 'out'},uses_draft=true", load(model_folder).model_id
        )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_components": 0}, "num_components is 0"),
        ({"c": 0}, "c is 0"),
        ({"num_prompts": 3}, "num_prompts is 3"),
        ({"num_held_out": 1}, "num_held_out is 1"),
        ({"least_auroc": 0.4}, "least_auroc is 0.4"),
        ({"layer": 3}, "final_norm has layers"),
        ({"site": "everywhere"}, "site is 'everywhere'"),
        ({"draft_replies": 1}, "draft_replies is 1"),
        ({"draft_tokens": 1}, "draft_tokens is 1"),
        ({"draft_top_k": 1}, "draft_top_k is 1"),
        ({"draft_epochs": 0}, "draft_epochs is 0"),
        ({"draft_lr": 0}, "draft_lr is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CandidateReranking(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_candidates_are_refused(top_k: int, tmp_path: Path) -> None:
    folder = trained("candidate_reranking", tmp_path / "out").folder
    with pytest.raises(ConfigError, match=f"top_k is {top_k}"):
        load_responder(f"candidate_reranking:{folder},top_k={top_k}", tiny().model_id)


def test_openings_are_a_dozen_each_and_differ() -> None:
    every: Sequence[str] = (*REFUSALS, *COMPLIANCES)
    assert len(set(every)) == 2 * len(REFUSALS) == 2 * len(COMPLIANCES) == 24


def test_the_example_runs(
    model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["candidate_reranking.py", model_folder])
    runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("refusals score higher than compliance in ")
    routes = {line.partition(":")[0] for line in lines[1:]}
    assert routes & {"candidate_reranking", "pass"}

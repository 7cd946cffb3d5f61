"""`tfidf`, `length` and `keyword`: what can be said of a prompt by its text alone."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import FeatureUnion, make_pipeline

from demur.core.errors import CapabilityError, ConfigError, DataError
from demur.core.protocols import Targets
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec, Read, Texts
from demur.detectors._logistic import balanced_weights
from demur.detectors._texts import TextDetector
from demur.detectors._words import words_from_array, words_to_array
from demur.detectors.keyword import Keyword, log_odds_z_scores
from demur.detectors.length import Length
from demur.detectors.tfidf import Tfidf

READS = (Texts(),)
METHODS: tuple[type[TextDetector], ...] = (Tfidf, Length, Keyword)
SAFE_WORDS = ("river", "bread", "école", "walk", "garden", "read", "the", "a", "of", "水")
UNSAFE_WORDS = ("poison", "weapon", "steal", "the", "a", "of", "garden", "read", "水")


def readings_of(texts: Sequence[str]) -> Readings:
    return Readings({Texts(): tuple(texts)})


def texts_and_targets(num_prompts: int = 120) -> tuple[list[str], Targets]:
    """Return texts of partly shared words, and their labels, of which a source is small."""
    generator = np.random.default_rng(0)
    unsafe = generator.random(num_prompts) < 0.4
    texts = [
        " ".join(generator.choice(UNSAFE_WORDS if is_unsafe else SAFE_WORDS, size=6))
        for is_unsafe in unsafe
    ]
    source = np.where(generator.random(num_prompts) < 0.2, "small", "large")
    return texts, Targets(unsafe, np.arange(num_prompts), source)


def targets_of(unsafe: Sequence[bool]) -> Targets:
    return Targets(np.array(unsafe), np.arange(len(unsafe)), np.zeros(len(unsafe), int))


# TF-IDF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("balance", ["none", "labels", "sources"])
def test_tfidf_equals_a_pipeline_of_scikit_learn(c: float, balance: str) -> None:
    texts, known = texts_and_targets()
    new = [*texts[:5], "An unseen WEAPON\nof\tthe  école", "zzz", ""]
    pipeline = make_pipeline(
        FeatureUnion(
            [
                ("w", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)),
                (
                    "c",
                    TfidfVectorizer(
                        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3
                    ),
                ),
            ]
        ),
        LogisticRegression(C=c, max_iter=2000),
    )
    weights = balanced_weights(known, balance)
    pipeline.fit(texts, known.unsafe, logisticregression__sample_weight=weights)
    detector = Tfidf(READS, c=c, balance=balance)  # type: ignore[arg-type]  # parametrised
    scores = detector.fit(readings_of(texts), known, seed=0).decision_function(readings_of(new))
    np.testing.assert_allclose(scores, pipeline.decision_function(new), rtol=0, atol=1e-9)


def test_tfidf_keeps_the_commonest_features() -> None:
    texts, known = texts_and_targets()
    state = Tfidf(READS, max_features=7).fit(readings_of(texts), known, seed=0).state()
    words = words_from_array(state["words"], name="words")
    counts = Counter(word for text in texts for word in text.split() if len(word) > 1)
    assert len(words) == len(words_from_array(state["characters"], name="characters")) == 7
    assert counts.most_common(1)[0][0] in words
    assert state["weights"].shape == (14,)


def test_rare_terms_are_left_out() -> None:
    texts, known = texts_and_targets()
    texts[0] += " hapax"
    state = Tfidf(READS).fit(readings_of(texts), known, seed=0).state()
    assert "hapax" not in words_from_array(state["words"], name="words")
    assert "hapa" not in words_from_array(state["characters"], name="characters")


@pytest.mark.parametrize(
    ("texts", "kind", "name"),
    [
        (("one two", "three four"), "words", "min_df_words"),
        (("aa bb", "aa bb"), "characters", "min_df_characters"),  # fewer prompts than 3
        (("? !", "! ?"), "words", "min_df_words"),
    ],
)
def test_prompts_without_a_common_term_are_refused(
    texts: Sequence[str], kind: str, name: str
) -> None:
    with pytest.raises(
        DataError, match=f"of {kind}, nothing occurs in . or more of these 2.*{name}"
    ):
        Tfidf(READS).fit(readings_of(texts), targets_of([True, False]), seed=0)


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("weights", np.zeros(3), r"weights has shape \(3,\): expected"),
        ("bias", np.array([np.nan]), "bias is not finite"),
        ("word_idf", np.ones((2, 2)), r"word_idf has shape \(2, 2\)"),
        ("words", np.array([1.5]), "words is float64"),
        ("words", np.array([255, 254], np.uint8), "no UTF-8"),
        ("characters", np.frombuffer(b"ab\nab", np.uint8), "one twice"),
    ],
)
def test_a_broken_state_of_tfidf_is_refused(name: str, broken: Array, message: str) -> None:
    texts, known = texts_and_targets()
    state = Tfidf(READS).fit(readings_of(texts), known, seed=0).state()
    with pytest.raises(DataError, match=message):
        Tfidf(READS).load_state({**state, name: broken})


# Length -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unsafe_is_longer", [True, False])
def test_length_ranks_prompts_by_their_characters(unsafe_is_longer: bool) -> None:
    generator = np.random.default_rng(0)
    unsafe = np.arange(200) % 2 == 0
    lengths = generator.integers(1, 300, 200) + 150 * (unsafe == unsafe_is_longer)
    readings = readings_of(["é" * length for length in lengths])
    scores = (
        Length(READS).fit(readings, targets_of(unsafe.tolist()), seed=0).decision_function(readings)
    )
    expected = roc_auc_score(unsafe, lengths if unsafe_is_longer else -lengths)
    assert 0.6 < expected < 0.99
    assert roc_auc_score(unsafe, scores) == expected


def test_length_is_linear_in_the_logarithm() -> None:
    texts, known = texts_and_targets()
    detector = Length(READS).fit(readings_of(texts), known, seed=0)
    weight, bias = detector.state()["weight"][0], detector.state()["bias"][0]
    scores = detector.decision_function(readings_of(["", "abc", "x" * 99]))
    expected = [bias, weight * math.log(4) + bias, weight * math.log(100) + bias]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_prompts_of_one_length_score_alike() -> None:
    readings = readings_of(["abc", "def", "ghi", "jkl"])
    known = targets_of([True, False, True, False])
    scores = (
        Length(READS).fit(readings, known, seed=0).decision_function(readings_of(["", "a" * 9]))
    )
    np.testing.assert_allclose(scores, 0, atol=1e-6)


# Keywords -----------------------------------------------------------------------------------------


def counts_with(keywords: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Return the scores of texts under the operator's own keywords."""
    detector = Keyword(READS, keywords=tuple(keywords))
    detector.fit(readings_of(["a", "b"]), targets_of([True, False]), seed=0)
    scores: list[float] = detector.decision_function(readings_of(texts)).tolist()
    return scores


def test_z_scores_are_those_of_a_direct_computation() -> None:
    unsafe, safe = {"bomb": 6, "the": 10, "how": 4}, {"the": 12, "how": 5, "cake": 3}
    found = log_odds_z_scores(unsafe, safe, prior_words=8.0)
    total = {"bomb": 6, "the": 22, "how": 9, "cake": 3}  # 40 words: 20 unsafe, 20 safe
    assert set(found) == set(total)
    for word, count in total.items():
        alpha = 8.0 * count / 40
        first, second = unsafe.get(word, 0) + alpha, safe.get(word, 0) + alpha
        delta = math.log(first / (20 + 8 - first)) - math.log(second / (20 + 8 - second))
        assert found[word] == pytest.approx(delta / math.sqrt(1 / first + 1 / second), rel=1e-12)


def test_equal_use_has_a_z_score_of_zero_and_swapped_labels_turn_the_sign() -> None:
    unsafe, safe = {"a": 5, "b": 5, "c": 1}, {"a": 5, "b": 1, "c": 5}
    found = log_odds_z_scores(unsafe, safe, prior_words=500)
    turned = log_odds_z_scores(safe, unsafe, prior_words=500)
    assert found["a"] == 0
    assert {word: -z for word, z in turned.items()} == pytest.approx(found)


def test_a_stronger_prior_draws_rare_words_to_zero() -> None:
    unsafe, safe = {"rare": 1, "the": 999}, {"the": 1000}
    weak, strong = (
        log_odds_z_scores(unsafe, safe, prior_words=words)["rare"] for words in (500, 50_000)
    )
    assert 0 < strong < weak < 1.96


def test_fit_takes_the_words_that_set_unsafe_texts_apart() -> None:
    texts, known = texts_and_targets()
    detector = Keyword(READS, num_keywords=3).fit(readings_of(texts), known, seed=0)
    words = words_from_array(detector.state()["keywords"], name="keywords")
    assert set(words) == {"poison", "weapon", "steal"}


def test_words_that_safe_texts_use_more_are_never_taken() -> None:
    texts, known = texts_and_targets()
    detector = Keyword(READS).fit(readings_of(texts), known, seed=0)
    words = words_from_array(detector.state()["keywords"], name="keywords")
    assert {"poison", "weapon", "steal"} <= set(words)
    assert not {"river", "bread", "école", "walk"} & set(words)


def test_texts_that_do_not_differ_give_no_keywords() -> None:
    with pytest.raises(DataError, match="no word of these 2 prompts is more common"):
        Keyword(READS).fit(readings_of(["a b", "a b"]), targets_of([True, False]), seed=0)


def test_a_keyword_counts_once() -> None:
    assert counts_with(["bomb", "poison"], ["bomb bomb", "bomb and poison", ""]) == [1, 2, 0]


def test_keywords_are_found_in_any_case() -> None:
    assert counts_with(["BoMb", "straße"], ["a BOMB", "STRASSE", "Straße"]) == [1, 1, 1]


def test_keywords_that_differ_in_case_only_are_one() -> None:
    assert counts_with(["Bomb", "bomb"], ["bomb"]) == [1]


def test_keywords_are_whole_words() -> None:
    texts = ["bombastic", "abomb", "bomb_1", "bomb", "(bomb)", "bomb's", "bomb-making"]
    assert counts_with(["bomb"], texts) == [0, 0, 0, 1, 1, 1, 1]


def test_a_later_whole_word_is_found_behind_a_part_of_another() -> None:
    assert counts_with(["bomb"], ["bombastic bomb"]) == [1]


def test_phrases_are_found_over_any_space() -> None:
    texts = ["how to  kill", "How\nto\tkill?", "how to", "know how to kill", "to kill how"]
    assert counts_with(["how to kill"], texts) == [1, 1, 0, 1, 0]
    assert counts_with([" how  to\nkill "], texts) == [1, 1, 0, 1, 0]


def test_signs_in_keywords_are_taken_as_they_are() -> None:
    assert counts_with(["c-4", "a.b", "(!)"], ["C-4 a.b", "c4 axb", "well(!)now"]) == [2, 0, 1]


def test_keywords_survive_json() -> None:
    detector = Keyword(READS, keywords=("bomb", "how to kill"), num_keywords=5, prior_words=10.0)
    fields = json.loads(json.dumps(detector.hyper_parameters()))
    restored = Keyword.from_hyper_parameters(fields)
    assert restored == detector
    assert restored.keywords == ("bomb", "how to kill")


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="'bomb': expected a list"):
        Keyword(READS, keywords="bomb")  # type: ignore[arg-type]


@pytest.mark.parametrize("keyword", ["", " \n", 7])
def test_a_keyword_that_is_no_word_is_refused(keyword: object) -> None:
    with pytest.raises(ConfigError, match="expected a word or phrase"):
        Keyword(READS, keywords=(keyword,))  # type: ignore[arg-type]


# All of them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (Tfidf, {"c": 0}, "c is 0: expected more than 0"),
        (Tfidf, {"c": float("nan")}, "c is nan"),
        (Tfidf, {"min_df_words": 0}, "min_df_words is 0"),
        (Tfidf, {"min_df_characters": 0}, "min_df_characters is 0"),
        (Tfidf, {"max_features": -1}, "max_features is -1"),
        (Tfidf, {"balance": "topics"}, "'topics': expected one of"),
        (Length, {"c": -1.0}, "c is -1.0"),
        (Length, {"balance": "topics"}, "'topics': expected one of"),
        (Keyword, {"num_keywords": 0}, "num_keywords is 0"),
        (Keyword, {"prior_words": 0.0}, "prior_words is 0.0"),
    ],
)
def test_a_value_out_of_range_is_refused(
    method: type[TextDetector], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        method(READS, **fields)


@pytest.mark.parametrize("reads", [(CaptureSpec((-1,)),), (Texts(), CaptureSpec((-1,))), ()])
@pytest.mark.parametrize("method", METHODS)
def test_reads_other_than_texts_are_refused(
    method: type[TextDetector], reads: tuple[Read, ...]
) -> None:
    texts, known = texts_and_targets()
    with pytest.raises(DataError, match="reads texts alone"):
        method(reads).fit(readings_of(texts), known, seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_readings_without_texts_are_refused(method: type[TextDetector]) -> None:
    states = Readings({CaptureSpec((-1,)): np.zeros((120, 1, 2), np.float32)})
    with pytest.raises(CapabilityError, match="Texts"):
        method(READS).fit(states, texts_and_targets()[1], seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_no_prompts_have_no_scores(method: type[TextDetector]) -> None:
    texts, known = texts_and_targets()
    detector = method(READS).fit(readings_of(texts), known, seed=0)
    assert detector.decision_function(readings_of([])).shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_the_stored_arrays_are_the_detectors_own(method: type[TextDetector]) -> None:
    texts, known = texts_and_targets()
    detector = method(READS).fit(readings_of(texts), known, seed=0)
    before = detector.decision_function(readings_of(texts))
    for array in detector.state().values():
        array[...] = 0
    np.testing.assert_array_equal(detector.decision_function(readings_of(texts)), before)


def test_words_of_all_scripts_survive_the_array() -> None:
    words = ["a b", "é", "水", "🦊", "\ud800"]
    assert words_from_array(words_to_array(words), name="words") == words

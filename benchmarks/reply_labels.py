"""Validates the labellers of replies against people: kappa, precision and recall on held-out parts.

The second labeller is chosen by its kappa on the development parts: a classifier fitted on one set,
on both, on both and on replies written for demur, or the refusal margin of the embedded model.
Trained responders say what was written for demur, so that a labeller has to know that, too. The
phrases of `refusal_match` were written with the development parts in view as well. Held-out parts
have no say in either.

    DEMUR_DATA=FOLDER python -m benchmarks.reply_labels [--json] [--write]

`--write` fits the classifier that ships anew, and writes the kappas by which rates are named.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sklearn.model_selection import GroupKFold

from benchmarks.machine import describe_machine
from benchmarks.reply_labels_report import report
from benchmarks.reply_labels_rows import (
    GPTFUZZ,
    WRITTEN,
    XSTEST,
    LabelledReply,
    answers_of,
    chosen,
    complied,
    groups_of,
    labelled,
    written_replies,
)
from demur.core.outcomes import OUTCOMES, Outcome, Scorer
from demur.core.readings import Array
from demur.core.validation import PATH, Asked, MeasuredKappa, ValidatedLabeller, hashes, rate_name
from demur.datasets.demur_data import DemurData
from demur.metrics.cohen_kappa import CohenKappa
from demur.metrics.precision_recall import PrecisionRecall
from demur.scorers.agreement import Agreement
from demur.scorers.refusal_margin import RefusalMargin
from demur.scorers.refusal_match import RefusalMatch
from demur.scorers.reply_classifier import SHIPPED, ReplyClassifier

RESULTS = Path(__file__).parent / "results"
NUM_FOLDS = 5
UNSEEN = "classifier, model unseen"
FILES = {
    "refusal_match": (
        "scorers/refusal_match.py",
        "scorers/_refusal_phrases.py",
        "scorers/_refusal_languages.py",
        "scorers/_plain_text.py",
        "scorers/collapse.py",
        "scorers/_repetition.py",
    ),
    "reply_classifier": (
        "scorers/reply_classifier.py",
        "pretrained/reply-classifier/model.safetensors",
        "scorers/_plain_text.py",
        "scorers/collapse.py",
        "scorers/_repetition.py",
    ),
}
"""What a labeller's labels come from."""

Labels = list[Outcome]


def labels_of(scorer: Scorer, replies: Sequence[LabelledReply]) -> Labels:
    """Return a labeller's outcomes; every one has to have one."""
    outcomes = [judgement.outcome for judgement in scorer.judge(answers_of(replies))]
    return [outcome for outcome in outcomes if outcome is not None]


def fitted(replies: Sequence[LabelledReply]) -> ReplyClassifier:
    """Return a classifier that learnt from some replies."""
    source = np.array([reply.source for reply in replies])
    return ReplyClassifier().fit(answers_of(replies), complied(replies), source=source)


def kappa(labels: Sequence[Outcome], replies: Sequence[LabelledReply]) -> CohenKappa:
    """Return the agreement with people; what a labeller leaves unclear is no agreement."""
    human = [reply.human for reply in replies]
    return CohenKappa.of(_codes(labels), _codes(human), group=groups_of(replies))


def _codes(labels: Iterable[Outcome]) -> Array:
    return np.array([OUTCOMES.index(label) for label in labels], int)


def cross_fitted(fixed: Sequence[LabelledReply], parted: Sequence[LabelledReply]) -> Labels:
    """Return labels of replies by classifiers that saw no reply to the same request."""
    found: dict[int, Outcome] = {}
    folds = GroupKFold(NUM_FOLDS).split(np.zeros(len(parted)), groups=groups_of(parted))
    for learnt, judged in folds:
        classifier = fitted([*fixed, *(parted[row] for row in learnt)])
        labels = labels_of(classifier, [parted[row] for row in judged])
        found.update(zip(judged.tolist(), labels, strict=True))
    return [found[row] for row in range(len(parted))]


def model_unseen(
    learnt: Sequence[LabelledReply], judged: Sequence[LabelledReply]
) -> tuple[Labels, dict[str, Any]]:
    """Return labels by classifiers that saw no reply of the same model, and a kappa a model."""
    found: dict[int, Outcome] = {}
    kappas = {}
    for name in sorted({reply.model for reply in judged}):
        classifier = fitted([reply for reply in learnt if reply.model != name])
        rows = [row for row, reply in enumerate(judged) if reply.model == name]
        of_model = [judged[row] for row in rows]
        labels = labels_of(classifier, of_model)
        found.update(zip(rows, labels, strict=True))
        kappas[name] = asdict(kappa(labels, of_model))
    return [found[row] for row in range(len(judged))], kappas


def margin_labels(replies: Sequence[LabelledReply]) -> Labels:
    """Return labels by the margin of the embedded model, at the best threshold in hindsight."""
    scorer = RefusalMargin()
    texts = {reply.answered.chat: 0.0 for reply in replies}
    texts = dict(zip(texts, scorer.margins(list(texts)).tolist(), strict=True))
    margins = np.array([texts[reply.answered.chat] for reply in replies])
    human = _codes(reply.human for reply in replies)
    best, labels = -1.0, human
    for threshold in np.quantile(margins, np.linspace(0.02, 0.98, 49)):
        tried = np.where(margins > threshold, OUTCOMES.index("refused"), OUTCOMES.index("complied"))
        value = CohenKappa.of(tried, human, group=groups_of(replies), num_draws=1).value or -1.0
        if value > best:
            best, labels = value, tried
    return [OUTCOMES[code] for code in labels]


def choose(replies: Sequence[LabelledReply]) -> dict[str, Any]:
    """Return the development kappas of the candidates for the second labeller."""
    first, written = (chosen(replies, name, "fit") for name in (GPTFUZZ, WRITTEN))
    rows = {name: chosen(replies, name, "development") for name in (XSTEST, GPTFUZZ, WRITTEN)}
    parted = rows[XSTEST]
    candidates: dict[str, dict[str, Labels]] = {
        f"classifier fitted on {GPTFUZZ}": _candidate(first, [], rows),
        "classifier fitted on both": _candidate(first, parted, rows),
        f"classifier fitted on both and on replies {WRITTEN}": _candidate(
            [*first, *written], parted, rows
        ),
        "refusal margin of the embedded model": {XSTEST: margin_labels(parted)},
    }
    return {
        name: {source: asdict(kappa(labels, rows[source])) for source, labels in found.items()}
        for name, found in candidates.items()
    }


def _candidate(
    fixed: Sequence[LabelledReply],
    parted: Sequence[LabelledReply],
    rows: Mapping[str, Sequence[LabelledReply]],
) -> dict[str, Labels]:
    """Return the labels of a classifier, by folds of requests on a part that it learns from."""
    classifier = fitted([*fixed, *parted])
    found = {name: labels_of(classifier, of) for name, of in rows.items()}
    return found | ({XSTEST: cross_fitted(fixed, parted)} if parted else {})


def quality(labels: Labels, replies: Sequence[LabelledReply]) -> dict[str, Any]:
    """Return how right a labeller is on some replies."""
    group, outcomes = groups_of(replies), np.array(labels)
    human = np.array([reply.human for reply in replies])
    clear = [row for row, label in enumerate(labels) if label != "unclear"]
    whole = [row for row, reply in enumerate(replies) if reply.kind != "partial refusal"]
    return {
        "replies": len(replies),
        "groups": len(set(group.tolist())),
        "num_complied": int((human == "complied").sum()),
        "unclear": len(replies) - len(clear),
        "kappa": asdict(kappa(labels, replies)),
        "kappa_of_clear": _kappa_of(clear, labels, replies),
        "kappa_without_partial": _kappa_of(whole, labels, replies),
        **{
            name: asdict(PrecisionRecall.of(outcomes == name, human == name, group=group))
            for name in ("complied", "refused")
        },
    }


def _kappa_of(
    rows: Sequence[int], labels: Labels, replies: Sequence[LabelledReply]
) -> dict[str, Any]:
    return asdict(kappa([labels[row] for row in rows], [replies[row] for row in rows]))


def by_asked(labels: Labels, replies: Sequence[LabelledReply]) -> dict[str, Any]:
    """Return how right a labeller is on replies to all, unsafe and safe requests."""
    found = {}
    for asked in ("all", "unsafe", "safe"):
        rows = [row for row, reply in enumerate(replies) if asked in ("all", reply.asked)]
        if rows and (asked == "all" or len(rows) < len(replies)):
            found[asked] = quality([labels[row] for row in rows], [replies[row] for row in rows])
    return found


def cells(by_labeller: Mapping[str, Labels], replies: Sequence[LabelledReply]) -> list[Any]:
    """Return how many replies each combination of a human label and two labels has."""
    first, second = by_labeller["refusal_match"], by_labeller["reply_classifier"]
    counts = Counter(
        (reply.asked, reply.kind, *labels)
        for reply, *labels in zip(replies, first, second, strict=True)
    )
    return [[*cell, number] for cell, number in sorted(counts.items())]


def held_out(
    replies: Sequence[LabelledReply], scorers: Mapping[str, Scorer]
) -> dict[str, dict[str, Any]]:
    """Return all measurements on the held-out parts."""
    found: dict[str, dict[str, Any]] = {}
    learnt = [reply for reply in replies if _is_learnt(reply)]
    for source in (XSTEST, GPTFUZZ):
        rows = chosen(replies, source, "held out")
        labels = {name: labels_of(scorer, rows) for name, scorer in scorers.items()}
        pair = [_codes(labels[name]) for name in ("refusal_match", "reply_classifier")]
        found[source] = {
            "labellers": {name: by_asked(of, rows) for name, of in labels.items()},
            "agreement": asdict(CohenKappa.of(*pair, group=groups_of(rows))),
            "cells": cells(labels, rows),
        }
        if source == XSTEST:
            unseen, kappas = model_unseen(learnt, rows)
            found[source]["labellers"][UNSEEN] = by_asked(unseen, rows)
            found[source]["models_unseen"] = kappas
    return found


def _is_learnt(reply: LabelledReply) -> bool:
    return reply.part == ("development" if reply.source == XSTEST else "fit")


def validations(found: Mapping[str, Mapping[str, Any]]) -> list[ValidatedLabeller]:
    """Return the kappas by which rates are named.

    The classifier is judged by replies of models that it saw no reply of, as users' models are.
    """
    files = {**FILES, "agreement": tuple(dict.fromkeys(sum(FILES.values(), ())))}
    files["agreement"] = ("scorers/agreement.py", *files["agreement"])
    labellers = []
    for name, of in files.items():
        measured = []
        for source, results in found.items():
            known = results["labellers"]
            is_unseen = name == "reply_classifier" and UNSEEN in known
            measured += _measured(source, known[UNSEEN if is_unseen else name], is_unseen)
        labellers.append(ValidatedLabeller(name, tuple(measured), hashes(of)))
    return labellers


def _measured(source: str, results: Mapping[str, Any], is_unseen: bool) -> list[MeasuredKappa]:
    asked_of: tuple[Asked, ...] = ("unsafe", "safe")
    parts = {asked: results[asked] for asked in asked_of if asked in results}
    if not parts:  # a set of unsafe requests alone
        parts = {"unsafe": results["all"]}
    where = f"{source}, held-out requests" + (", models not learnt from" if is_unseen else "")
    return [
        MeasuredKappa(
            replies=where,
            asked=asked,
            kappa=part["kappa"]["value"],
            interval=part["kappa"]["interval"],
            num_replies=part["replies"],
        )
        for asked, part in parts.items()
    ]


def measure(replies: Sequence[LabelledReply], classifier: ReplyClassifier) -> dict[str, Any]:
    """Return all results."""
    matcher = RefusalMatch()
    scorers: dict[str, Scorer] = {
        "refusal_match": matcher,
        "reply_classifier": classifier,
        "agreement": Agreement(matcher, classifier),
    }
    development = {
        source: by_asked(labels_of(matcher, rows), rows)
        for source in (XSTEST, GPTFUZZ)
        for rows in [chosen(replies, source, "fit", "development")]
    }
    found = held_out(replies, scorers)
    names = {
        labeller.name: [rate_name(labeller, asked) for asked in ("unsafe", "safe")]
        for labeller in validations(found)
    }
    return {
        "candidates": choose(replies),
        "matcher on development parts": development,
        "held_out": found,
        "names": names,
    }


def write(classifier: ReplyClassifier) -> None:
    """Write the classifier that ships."""
    SHIPPED.parent.mkdir(exist_ok=True)
    save_file(classifier.state(), SHIPPED)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--write", action="store_true", help="fit and write what ships")
    options = parser.parse_args()
    replies = [*labelled(DemurData()), *written_replies()]
    if options.write:
        write(fitted([reply for reply in replies if _is_learnt(reply)]))
    results = {"machine": describe_machine(), **measure(replies, ReplyClassifier())}
    if options.write:
        kappas = [labeller.as_dict() for labeller in validations(results["held_out"])]
        PATH.write_text(json.dumps(kappas, indent=1) + "\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reply_labels.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "reply_labels.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()

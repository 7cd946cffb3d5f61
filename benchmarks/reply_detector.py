"""Measures the shipped reply detector, which scores a reply after each of its tokens.

Labelled replies are those of `responses_test`; ordinary ones are the model's own to prompts of the
utility sets, which the detector never saw. A reply is stopped once its score has reached the
threshold, so what counts after k tokens is the highest score so far. Beside it stand TF-IDF on the
same tokens, fitted on the same replies, and the shipped prompt detector, which sees no reply.

    DEMUR_DATA=FOLDER python -m benchmarks.reply_detector [--json]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.build_pretrained import MAX_BATCH, OUT, REPLY_OUT, show_progress, show_replies
from benchmarks.contenders import TEXT_PENALTIES
from benchmarks.machine import describe_machine
from benchmarks.reply_report import report
from benchmarks.reply_rows import ReplyCapturer, ReplyRows
from benchmarks.rows import Selection
from demur.core import artifacts
from demur.core.examples import Example, targets_of
from demur.core.protocols import Request, StreamingDetector, TokenOut, whole
from demur.core.readings import Array, Readings, Values
from demur.core.reads import CaptureSpec, Texts
from demur.core.streaming import token_read
from demur.core.types import Chat, Sampling
from demur.datasets.demur_data import DemurData
from demur.detectors.tfidf import Tfidf
from demur.engines.transformers import TransformersEngine
from demur.metrics.auroc import auroc
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.metrics.wilson_interval import wilson_interval
from demur.workflows.capture import MAX_REPLY_TOKENS, Capturer
from demur.workflows.reply_scores import streamed_scores

RESULTS = Path(__file__).parent / "results"
FIRST_TOKENS = (1, 4, 16, 64, MAX_REPLY_TOKENS)
"""After which AUROC is measured; the last stands for all."""
NUM_COMPARED = 32
"""Replies whose streamed scores are compared with those of whole texts."""
TIMED_ROWS = (1, 32)
TIMED_TOKENS = 256


@dataclass(frozen=True)
class Streamed:
    """Replies with the score that they have after each token."""

    examples: Sequence[Example]
    scores: Sequence[Array]
    """One array [token] a reply."""

    def highest(self, num_tokens: int = MAX_REPLY_TOKENS) -> Array:
        """Return the highest score [reply] within the first tokens."""
        return np.array([scores[:num_tokens].max() for scores in self.scores])

    def newest(self, num_tokens: int = MAX_REPLY_TOKENS) -> Array:
        """Return the score [reply] of the text up to a token."""
        return np.array([scores[:num_tokens][-1] for scores in self.scores])

    def take(self, rows: Array) -> "Streamed":
        """Return some replies."""
        return Streamed([self.examples[row] for row in rows], [self.scores[row] for row in rows])


def stream(
    capture: ReplyCapturer, detector: StreamingDetector, examples: Sequence[Example]
) -> Streamed:
    """Score replies as they would be scored while they are decoded."""
    scores: list[Array] = [np.empty(0)] * len(examples)
    for rows, readings in capture.follow(examples, [token_read(detector)]):
        for row, found in zip(rows, streamed_scores(detector, readings), strict=True):
            scores[row] = found
    return Streamed(examples, scores)


def largest_difference(
    capture: ReplyCapturer, detector: StreamingDetector, examples: Sequence[Example]
) -> float:
    """Return how far streamed scores lie from those of the whole text so far, at most."""
    read = token_read(detector)
    readings = whole(list(capture.follow(examples, [read])))
    streamed = streamed_scores(detector, readings)
    differences = []
    for states, scores in zip(readings.ragged(read), streamed, strict=True):
        for num_tokens in range(1, len(scores) + 1, 7):
            values = so_far(states[:, :num_tokens], detector.reads[0])
            batch = detector.decision_function(Readings({detector.reads[0]: values}))
            differences.append(abs(float(batch[0]) - scores[num_tokens - 1]))
    return float(max(differences))


def so_far(states: Array, read: Any) -> Values:
    """Return what a read gives of a text with these states [layer, token, d_model]."""
    assert isinstance(read, CaptureSpec)
    return states.mean(1)[None] if read.is_pooled else (states,)


def labels_of(examples: Sequence[Example]) -> Array:
    """Return which replies are unsafe."""
    return np.array([example.response_label == "unsafe" for example in examples])


def aurocs(examples: Sequence[Example], scores_at: Callable[[int], Array]) -> dict[str, Any]:
    """Return the AUROC after some tokens, of all replies and of those to unsafe prompts.

    Args:
        examples: With their replies.
        scores_at: Returns the scores [reply] after a number of tokens.
    """
    unsafe, group = labels_of(examples), groups_of(examples)
    asked_unsafe = np.array([example.label == "unsafe" for example in examples])
    parts = {"all": np.ones(len(examples), bool), "unsafe_prompts": asked_unsafe}
    return {
        name: {
            str(k): auroc_with_interval(scores_at(k)[rows], unsafe[rows], group[rows])
            for k in FIRST_TOKENS
        }
        for name, rows in parts.items()
    }


def groups_of(examples: Sequence[Example]) -> Array:
    """Return the group of each reply."""
    return np.array([example.group_key for example in examples])


def auroc_with_interval(scores: Array, unsafe: Array, group: Array) -> dict[str, Any]:
    """Return the AUROC with a 95% bootstrap interval over groups."""
    bootstrap = GroupBootstrap([group])
    draws = bootstrap.draws({"auroc": lambda rows: auroc(scores[rows], unsafe[rows])}, group)
    return {"auroc": auroc(scores, unsafe), "interval": bootstrap.interval(draws["auroc"])}


def stopped(streamed: Streamed, threshold: float) -> dict[str, Any]:
    """Return the share of replies that are ever stopped, and after how many tokens."""
    flags = streamed.highest() >= threshold
    after = [
        int(np.argmax(scores >= threshold)) + 1
        for scores, flag in zip(streamed.scores, flags, strict=True)
        if flag
    ]
    return {
        "replies": len(flags),
        "stopped": float(flags.mean()) if len(flags) else None,
        "interval": wilson_interval(flags, groups_of(streamed.examples)),
        "median_tokens_before": float(np.median(after)) if after else None,
    }


def ordinary(streamed: Streamed, threshold: float) -> dict[str, Any]:
    """Return the share of ordinary replies that are stopped: all, the longest ones, and by set."""
    lengths = np.array([len(scores) for scores in streamed.scores])
    longest = lengths >= 0.98 * lengths.max()  # a text's tokens may be fewer than were drawn
    sources = np.array([example.source for example in streamed.examples])
    return {
        "all": stopped(streamed, threshold),
        "longest": stopped(streamed.take(np.flatnonzero(longest)), threshold)
        | {"tokens": int(lengths.max())},
        "sets": {
            name: stopped(streamed.take(np.flatnonzero(sources == name)), threshold)
            for name in np.unique(sources).tolist()
        },
    }


def tfidf_scores(
    selection: Selection, engine: TransformersEngine, examples: Sequence[Example]
) -> Callable[[int], Array]:
    """Fit TF-IDF on the text of the same replies; return its scores of the first tokens.

    The penalty is the one of the best AUROC on validation replies.
    """
    targets, val = targets_of(selection.train), targets_of(selection.val)
    best_auroc, best = -1.0, Tfidf((Texts(),))
    for c in TEXT_PENALTIES:
        detector = Tfidf((Texts(),), c=c).fit(_texts(selection.train), targets, seed=0)
        found = auroc(detector.decision_function(_texts(selection.val)), val.unsafe) or 0.0
        if found > best_auroc:
            best_auroc, best = found, detector
    tokenizer = engine.loaded.tokenizer

    def scores_at(num_tokens: int) -> Array:
        ids = [tokenizer(e.response, add_special_tokens=False)["input_ids"] for e in examples]
        texts = tuple(tokenizer.decode(of_reply[:num_tokens]) for of_reply in ids)
        return best.decision_function(Readings({Texts(): texts}))

    return scores_at


def _texts(examples: Sequence[Example]) -> Readings:
    return Readings({Texts(): tuple(str(example.response) for example in examples)})


def prompt_scores(capturer: Capturer, examples: Sequence[Example]) -> Array:
    """Return the shipped prompt detector's scores of the prompts alone."""
    detector = artifacts.restore(artifacts.read(OUT))
    chats = [example.chat for example in examples]
    readings = whole(capturer.parts(chats, detector.reads, report=show_progress))
    return detector.decision_function(readings)


def cost(engine: TransformersEngine, detector: StreamingDetector) -> dict[str, Any]:
    """Return what scoring a token costs, and what decoding one does, in milliseconds.

    Scoring begins with the blocks' outputs as decoding leaves them, a tensor a layer.
    """
    read = token_read(detector)
    d_model = engine.loaded.model.config.hidden_size
    per_token = {}
    for num_rows in TIMED_ROWS:
        outputs = [torch.randn(num_rows, 1, d_model).bfloat16() for _ in read.layers]
        state, seconds = detector.start(num_rows), []
        for _ in range(TIMED_TOKENS):
            started = time.perf_counter()
            states = torch.stack([output[:, -1] for output in outputs], dim=1).float().numpy()
            state, _ = detector.update(state, states)
            seconds.append(time.perf_counter() - started)
        per_token[str(num_rows)] = float(np.median(seconds) * 1e3)
    decoding = decoding_ms(engine)
    return {
        "update_ms_by_rows": per_token,
        "decoding_ms": decoding,
        "share_of_decoding": per_token["1"] / decoding,
    }


def decoding_ms(engine: TransformersEngine) -> float:
    """Return the median time between two tokens of one reply, in milliseconds."""
    prompt = engine.render(Chat.from_text("Tell me a long story about a river."))
    request = Request("timed", prompt, Sampling(max_tokens=TIMED_TOKENS // 2, temperature=0.7))
    at = [time.perf_counter() for event in engine.run([request]) if isinstance(event, TokenOut)]
    return float(np.median(np.diff(at)) * 1e3)


def measure(
    engine: TransformersEngine, artifact: artifacts.Artifact, rows: ReplyRows
) -> dict[str, Any]:
    """Return all results of an artifact."""
    detector = artifacts.restore(artifact)
    assert isinstance(detector, StreamingDetector), "only such a one is fitted on replies"
    capturer = Capturer(engine.loaded)
    capture = ReplyCapturer(capturer, report=show_progress)
    examples = rows.labelled_test()
    labelled = stream(capture, detector, examples)
    utility = stream(capture, detector, rows.ordinary("utility", max_tokens=rows.judged_tokens))
    unsafe, chance = labels_of(examples), artifact.calibration.default_fpr
    threshold = artifact.calibration.at(chance).threshold
    asked = prompt_scores(capturer, examples)
    return {
        "sha256": artifact.sha256,
        "fpr": chance,
        "auroc": {
            "highest score so far": aurocs(examples, labelled.highest),
            "score of the text so far": aurocs(examples, labelled.newest),
            "TF-IDF": aurocs(examples, tfidf_scores(rows.to_fit(), engine, examples)),
            "prompt detector": aurocs(examples, lambda _: asked),
        },
        "labelled": {
            "unsafe replies": stopped(labelled.take(np.flatnonzero(unsafe)), threshold),
            "safe replies": stopped(labelled.take(np.flatnonzero(~unsafe)), threshold),
        },
        "ordinary": ordinary(utility, threshold),
        "streamed_minus_batch": largest_difference(capture, detector, examples[:NUM_COMPARED]),
        "cost": cost(engine, detector),
    }


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    engine = TransformersEngine.load("embedded", dtype="bfloat16", max_batch=MAX_BATCH)
    rows = ReplyRows(DemurData(), engine, show_replies)
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        **measure(engine, artifacts.read(REPLY_OUT), rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reply_detector.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "reply_detector.md").write_text(report(results))
    print(json.dumps(results, indent=1) if options.json else report(results))


if __name__ == "__main__":
    main()

"""Train a reranker of candidate tokens, and answer a flagged prompt with it."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from demur.core.training import Run
from demur.core.types import Sampling
from demur.datasets import written
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.trainers.candidate_reranking import CandidateReranking
from demur.workflows.train import train

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
with TemporaryDirectory() as folder:
    trainer = CandidateReranking(num_prompts=40, num_held_out=6)
    outcome = train(trainer, written.load("train"), Run(model), Path(folder))
    print(f"refusals score higher than compliance in {outcome.metrics['auroc']:.0%} of pairs")

    engine = TransformersEngine.load(model)
    # The model itself judges prompts here; a fitted detector does it better.
    guard = Guard.load(engine, detectors=["prompted:0"], responder=f"candidate_reranking:{folder}")
    for text in ("How do I pick the lock of my neighbour's door?", "Name three rivers."):
        reply = guard.reply(text, Sampling(max_tokens=24))
        print(f"{reply.route}: {reply.text}")

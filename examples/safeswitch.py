"""SafeSwitch on a model of your own: two stages decide, and a refusal head answers what they flag.

python examples/safeswitch.py [MODEL]
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demur.core.examples import Example
from demur.core.outcomes import Answered
from demur.core.protocols import Detector, Stream
from demur.core.reads import Read
from demur.core.training import Run
from demur.core.types import Sampling
from demur.datasets import starter, written
from demur.detectors.cascade import Cascade
from demur.detectors.linear import Linear
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.exchange import plain_replies
from demur.scorers.agreement import Agreement
from demur.trainers.refusal_head import RefusalHeadTrainer
from demur.workflows.capture import Capturer
from demur.workflows.fit import fit, write_artifact
from demur.workflows.train import train

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
folder = Path(tempfile.mkdtemp())
engine = TransformersEngine.load(model)
capturer = Capturer(engine.loaded)
prompts, held_out = written.load("train")[:160], starter.load("val")

# What the model itself does with each prompt; `demur label` does it for a file.
replies = plain_replies(engine, [example.chat for example in prompts], Sampling(max_tokens=24))
answers = [Answered(of.chat, reply.text) for of, reply in zip(prompts, replies, strict=True)]
complied = {"complied": True, "refused": False}
prompts = [
    replace(example, complied=complied.get(str(judgement.outcome)))
    for example, judgement in zip(prompts, Agreement().judge(answers), strict=True)
]

# Stage one reads the prompt. Stage two begins the reply where stage one finds a prompt unsafe: it
# has something to learn if the model refuses some unsafe prompts and complies with others.
reads = Linear.default_reads(len(engine.loaded.parts.blocks))
outcomes = {example.complied for example in prompts if example.label == "unsafe"}
detector: Detector = Linear(reads)
if {True, False} <= outcomes:
    detector = Cascade(reads, second="compliance", low=0.0, high=None, combine="product")


def capture(examples: Sequence[Example], wanted: Sequence[Read]) -> Stream:
    """Read prompts, from disk where they were read before."""
    return capturer.parts([example.chat for example in examples], wanted)


fitted = fit(
    detector, prompts, held_out, capture=capture, fpr=0.1, calibrated_on="the starter set", seed=0
)
name = "cascade" if isinstance(detector, Cascade) else "linear"
write_artifact(fitted, name, engine=engine, train=prompts, val=held_out, out=folder / "detector")
train(RefusalHeadTrainer(num_prompts=60, epochs=3), prompts, Run(model), folder / "head")

guard = Guard.load(
    engine, detectors=[folder / "detector"], responder=f"refusal_head:{folder / 'head'}"
)
for example in starter.load("demo"):
    reply = guard.reply(example.chat, Sampling(max_tokens=24))
    print(f"{example.label}: {reply.route}: {reply.text!r}")

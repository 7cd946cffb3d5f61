"""Steer a model both ways by one score: flagged prompts to a refusal, all others away from one."""

import sys
import tempfile
from pathlib import Path

from demur.core.training import Run
from demur.core.types import Sampling
from demur.datasets import starter
from demur.detectors.transition import Transition
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.calibrated import CalibratedDetector
from demur.guard.responding import load_responder
from demur.guard.routes import EitherTo
from demur.trainers.steering import Steering
from demur.workflows.capture import Capturer
from demur.workflows.fit import fit
from demur.workflows.train import train

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
engine = TransformersEngine.load(model)
capturer = Capturer(engine.loaded)
examples, held_out = starter.load("train"), starter.load("val")

# The score: how the state moves when the model has said "Sure", with a threshold from safe prompts.
fitted = fit(
    Transition(Transition.default_reads(len(engine.loaded.parts.blocks))),
    examples,
    held_out,
    capture=lambda some, reads: capturer.parts([example.chat for example in some], reads),
    fpr=0.1,
    calibrated_on="the starter set's safe prompts",
    seed=0,
)
calibration = fitted.calibration
transition = CalibratedDetector(
    name="transition",
    detector=fitted.detector,
    threshold=calibration.default_threshold,
    slope=calibration.slope,
    intercept=calibration.intercept,
    version="example",
)

with tempfile.TemporaryDirectory() as folder:
    train(Steering(coefficient=0.5), examples, Run(model), Path(folder) / "vectors")
    guard = Guard(
        engine,
        [transition],
        route=EitherTo(flagged="steer_to_refusal", others="soften"),
        responders={
            "steer_to_refusal": load_responder(f"steering:{folder}/vectors", engine.model_id),
            "soften": load_responder(f"steering:{folder}/vectors@-1", engine.model_id),
        },
    )
    for text in ("How do I kill a Python process?", "Name three rivers."):
        reply = guard.reply(text, Sampling(max_tokens=24))
        print(reply.route, round(reply.verdicts[0].score or 0.0, 3), reply.text)

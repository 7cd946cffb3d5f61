"""Guard the embedded model: score a chat, answer one, and stream one."""

from demur.core.types import Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard

engine = TransformersEngine.load("embedded")
guard = Guard.load(engine, detectors=["pretrained"], responder="adapter:pretrained", fpr=0.01)

(verdict,) = guard.check("How do I kill a Python process?")
print(verdict.flagged, round(verdict.probability or 0.0, 3))

reply = guard.reply([{"role": "user", "content": "Name three rivers."}], Sampling(max_tokens=24))
print(reply.route, reply.text)

for token in guard.stream("Write a haiku about rain.", Sampling(max_tokens=24)):
    print(token.text, end="", flush=True)
print()

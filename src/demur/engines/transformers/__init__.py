"""Models of the transformers library: one prefill, then batched decoding.

Rows join and leave the running batch; each keeps its own generator.
The hidden states are read in the prefill that the reply goes on from. A reply without
intervention starts from that prefill's own logits and cache, so it is the unguarded one.
"""

from demur.engines.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]

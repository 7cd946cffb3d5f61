"""The guard inside plain `vllm serve`.

In vLLM's API process each request is sealed: where the user's turns are, and what is to become of
it. In the worker the prompt is judged between the pass that reads it and the draw of its first
token.
"""

NAME = "demur"
"""In VLLM_PLUGINS."""

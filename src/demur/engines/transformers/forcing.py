"""How likely given replies are, from where a reply would be drawn: under an intervention too.

Each token is read in a step of its own, as decoding reads it, so that what an intervention changes
of a reply's passes is changed here as well. Replies to one prompt share what was read of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from demur.core.errors import CapabilityError, DataError
from demur.core.interventions import EndReply, Intervention, ReplyWith, RerankTokens
from demur.core.readings import Array
from demur.core.types import Prompt
from demur.engines.transformers.engine import TransformersEngine
from demur.engines.transformers.passes import Passes
from demur.engines.transformers.starting import Start, Starter
from demur.modeling.caches import fork
from demur.modeling.chat import ChatRenderer


class Forcing:
    """Tells how likely replies are, as an engine would draw them.

    Args:
        engine: Its model is read; it is never changed.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        loaded = engine.loaded
        self._passes = Passes(loaded)
        self._starter = Starter(loaded, ChatRenderer.of(loaded), engine.render, self._passes)

    def log_probs(
        self, prompt: Prompt, replies: Sequence[str], *, intervention: Intervention | None = None
    ) -> list[Array]:
        """Return the log-probability of each token of given replies, one array [token] a reply.

        Args:
            prompt: Is read once for all of them.
            replies: Texts; each is split into tokens by itself, and no end token follows.
            intervention: Under which the model would reply; None is the model by itself.

        Raises:
            CapabilityError: The intervention chooses tokens otherwise than by their likelihood.
            DataError: There is no reply, one is empty, or one is longer than the context.
        """
        longer = [self._engine.with_reply(prompt, reply) for reply in replies]
        start = self.start(prompt, intervention)
        return forced_log_probs(
            self._passes,
            start,
            [of.token_ids[len(prompt) :] for of in longer],
            max_tokens=self._engine.max_tokens,
        )

    def start(self, prompt: Prompt, intervention: Intervention | None) -> Start:
        """Return from where a reply would be drawn.

        Raises:
            CapabilityError: See `log_probs`.
        """
        require_drawing(intervention)
        prefill = self._passes.prefill(prompt.token_ids)
        if intervention is None:
            return Start.of(prefill)
        return self._starter.start(prompt, prefill, intervention)


def require_drawing(intervention: Intervention | None) -> None:
    """Refuse an intervention under which no token is drawn by its likelihood.

    Raises:
        CapabilityError: It is one.
    """
    if isinstance(intervention, ReplyWith | EndReply | RerankTokens):
        raise CapabilityError(
            f"under {type(intervention).__name__} no token is drawn by its likelihood: name "
            "another responder"
        )


@torch.inference_mode()
def forced_log_probs(
    passes: Passes, start: Start, replies: Sequence[Sequence[int]], *, max_tokens: int
) -> list[Array]:
    """Return the log-probability of each token of each reply, one array [token] a reply, float64.

    Args:
        passes: Run the model.
        start: What was read; it is not changed.
        replies: Tokens, one or more each.
        max_tokens: The model's context.

    Raises:
        DataError: There is no reply, or one does not fit into the context.
    """
    if not replies:
        raise DataError("there are no replies: give one or more texts")
    number, longest = len(replies), max(map(len, replies))
    if start.length + longest > max_tokens:
        raise DataError(
            f"{start.length} tokens were read, and a reply of {longest} after them is longer than "
            f"the context of {max_tokens}: shorten it"
        )
    device = start.logits.device
    # The last token of a short reply is read on and on; nothing is taken of that.
    columns = [[reply[min(step, len(reply) - 1)] for reply in replies] for step in range(longest)]
    tokens = torch.tensor(columns, device=device)  # [step, reply]
    cache = fork(start.cache)
    if number > 1 and longest > 1:
        cache.batch_repeat_interleave(number)
    logits = start.logits.expand(number, -1)  # [reply, vocabulary]
    found = [_of(logits, tokens[0])]
    for step in range(1, longest):
        inputs = {
            "input_ids": tokens[step - 1][:, None],
            "attention_mask": None,
            "position_ids": torch.full((number, 1), start.length + step - 1, device=device),
            "past_key_values": cache,
        }
        logits = passes.step(inputs, [start.changes] * number, {})
        found.append(_of(logits, tokens[step]))
    values: Array = torch.stack(found, 1).double().cpu().numpy()  # [reply, step]
    return [row[: len(reply)] for row, reply in zip(values, replies, strict=True)]


def _of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probabilities [reply] of one token each, of logits [reply, vocabulary]."""
    return torch.log_softmax(logits.float(), -1).gather(-1, token_ids[:, None])[:, 0]

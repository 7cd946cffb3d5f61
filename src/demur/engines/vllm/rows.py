"""What the engine knows of a request that is under way in vLLM, and how vLLM is told to draw."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Self

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from demur.core.errors import DataError
from demur.core.interventions import Intervention
from demur.core.protocols import Done, Event, Request, TokenOut
from demur.core.types import ModelId, Prompt
from demur.engines._monitoring import failed
from demur.engines._text import TextStream
from demur.modeling.chat import ChatRenderer
from demur.modeling.load import LoadedModel


@dataclass(frozen=True)
class Known:
    """What transformers tells of a model that vLLM runs."""

    renderer: ChatRenderer
    tokenizer: Any
    model_id: ModelId
    end_token_ids: frozenset[int]

    @classmethod
    def of(cls, loaded: LoadedModel) -> Self:
        """Return what stays of a model once its weights are let go of."""
        renderer = ChatRenderer.of(loaded)
        return cls(renderer, loaded.tokenizer, loaded.model_id, loaded.end_token_ids)


@dataclass(eq=False)
class Row:
    """A request on its way through vLLM."""

    request: Request
    prompt: Prompt
    text: TextStream
    started_at: float
    number: int = field(default_factory=partial(next, count()))
    """Its own, whereas ids may come again."""
    key: str = ""
    """vLLM's own id of it."""
    told: list[Event] = field(default_factory=list)
    """What the judge has to say, once the step is over."""
    intervention: Intervention | None = None
    adapter: LoRARequest | None = None
    """Under which it is read again."""
    steered: dict[str, Any] | None = None
    """What it then says of the vectors that it gets."""
    is_judged: bool = False
    num_drawn: int = 0

    def take(
        self, output: RequestOutput, end_token_ids: frozenset[int], *, max_tokens: int
    ) -> list[Event]:
        """Return the tokens that a step drew, and what ends the reply with them.

        Args:
            output: Of vLLM, with the tokens since the last one.
            end_token_ids: What ends a reply.
            max_tokens: Of prompt and reply together.
        """
        request, (completion,) = self.request, output.outputs
        events: list[Event] = []
        for place, token_id in enumerate(completion.token_ids):
            logprob = math.nan
            if completion.logprobs is not None:
                logprob = completion.logprobs[place][token_id].logprob
            position = len(self.prompt) + self.num_drawn
            self.num_drawn += 1
            is_end = token_id in end_token_ids
            is_full = self.num_drawn == request.sampling.max_tokens or position + 1 >= max_tokens
            shown = self.text.push(token_id, is_last=is_end or is_full)
            events.append(TokenOut(request.id, position, token_id, shown, logprob))
            if is_end or self.text.is_stopped:
                return [*events, Done(request.id, "stop")]
            if is_full:
                return [*events, Done(request.id, "length")]
        if output.finished:
            error = DataError(f"vLLM ended the reply: {completion.finish_reason}")
            events.append(failed(request, error))
        return events


def sampling_params(
    request: Request, *, room: int, end_token_ids: frozenset[int]
) -> SamplingParams:
    """Return how vLLM draws a reply; stop texts are looked for here, not there.

    Args:
        request: Of which no token is drawn where it asks for none: the first one is dropped.
        room: Tokens that fit behind its prompt.
        end_token_ids: What ends a reply.
    """
    sampling = request.sampling
    digest = hashlib.sha256(f"{sampling.seed}:{request.draw_id or request.id}".encode())
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=int.from_bytes(digest.digest()[:7], "big"),
        max_tokens=min(max(1, sampling.max_tokens), room),
        stop_token_ids=sorted(end_token_ids),
        logprobs=0 if request.wants_logprobs else None,  # of 32 rows a tenth of a step
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # made for this request alone; vLLM copies what it holds one by one
    )

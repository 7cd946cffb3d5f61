"""Answers a flagged prompt by another request: under a safety prompt, or under an adapter.

The worker ends the reply to such a prompt before it begins, and the engine's client, which is told
why, asks once more. Clients see one reply, to the prompt that they gave.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Self

from vllm import SamplingParams
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from demur.core.interventions import UseAdapter
from demur.core.types import ModelId
from demur.engines.vllm.adapters import cannot_run, lora_requests
from demur.engines.vllm.worker import end_token_id_of
from demur.guard.responding import load_responder
from demur.integrations.vllm_serve.asking import SUBMISSION, Submission
from demur.integrations.vllm_serve.policy import adapters_of, responder_line, routes_again
from demur.responders.safety_prompt import SafetyPrompt
from demur.serving.settings import Settings

RENDERED_AGAIN = "demur_rendered_again"
"""In what vLLM renders of a chat: renders it with a safety prompt."""
ANSWERED_BY = "demur_answered_by"
"""Of an engine's client: its `Again`, if it has one."""

Outputs = AsyncGenerator[RequestOutput, None]
Generate = Callable[..., Outputs]


class Again:
    """Draws the replies to flagged prompts.

    Args:
        engine: vLLM's client of its engine.
        safety_prompt: Replies are drawn under it; None leaves prompts as they are.
        adapter: Replies are drawn under it; None leaves the model as it is.
    """

    def __init__(
        self, engine: AsyncLLM, *, safety_prompt: str | None, adapter: LoRARequest | None
    ) -> None:
        self._engine = engine
        self._safety_prompt = safety_prompt
        self._adapter = adapter
        self._end_token_id = end_token_id_of(engine.model_config)

    @classmethod
    async def of(cls, settings: Settings, engine: AsyncLLM, model_id: ModelId) -> Self | None:
        """Return what guard.toml asks for, with its adapter loaded; None if it asks for none.

        Raises:
            CapabilityError: vLLM cannot run the adapter.
            DemurError: What guard.toml names does not exist, or does not fit.
        """
        if not routes_again(settings):
            return None
        responder = load_responder(responder_line(settings), model_id)
        if isinstance(responder, SafetyPrompt):
            return cls(engine, safety_prompt=responder.text, adapter=None)
        with lora_requests(adapters_of(settings, model_id)) as found:
            ((adapter, request),) = found.items()
            await _load(engine, adapter, request)
        return cls(engine, safety_prompt=None, adapter=request)

    async def outputs(
        self,
        generate: Generate,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        options: Mapping[str, Any],
    ) -> Outputs:
        """Yield the outputs of a request, or those of the one that answers in its place.

        Args:
            generate: Asks the engine.
            prompt: As vLLM has rendered it.
            params: Of the request.
            request_id: Of the request.
            options: What else it says.
        """
        submission = Submission(can_be_answered_again=self._can_answer(prompt))
        async with aclosing(generate(prompt, params, request_id, **options)) as outputs:
            first = await _submitted(outputs, submission)
            if first is None:
                return
            if not await self._is_mine(first, submission):
                yield first
                async for output in outputs:
                    yield output
                return
        prompt, params = await self._rendered(prompt, params)
        options = {**options, "lora_request": self._adapter}
        async with aclosing(generate(prompt, params, f"{request_id}-again", **options)) as outputs:
            output = await _submitted(outputs, Submission(is_answer=True))
            while output is not None:
                output.request_id = request_id
                output.prompt, output.prompt_token_ids = first.prompt, first.prompt_token_ids
                yield output
                output = await anext(outputs, None)

    def _can_answer(self, prompt: Any) -> bool:
        is_chat = isinstance(prompt, dict) and RENDERED_AGAIN in prompt
        return is_chat or self._safety_prompt is None

    async def _is_mine(self, first: RequestOutput, submission: Submission) -> bool:
        """Tell whether a request was ended for this; the worker is asked where it may have been."""
        drawn = first.outputs[0].token_ids if first.outputs else ()
        if not submission.can_be_answered_again or [*drawn][:1] != [self._end_token_id]:
            return False
        (found, *_) = await self._engine.collective_rpc("demur_again", args=(submission.id,))
        return bool(found)

    async def _rendered(self, prompt: Any, params: SamplingParams) -> tuple[Any, SamplingParams]:
        """Return the prompt that is answered, and parameters that leave room for the reply.

        Raises:
            VLLMValidationError: With the safety prompt it is too long, or the template refuses it.
        """
        if self._safety_prompt is None:
            return prompt, params
        longest, is_said = self._engine.model_config.max_model_len, "with its safety prompt"
        try:
            longer = await prompt[RENDERED_AGAIN](self._safety_prompt)
        except (VLLMClientError, ValueError) as error:
            raise VLLMValidationError(f"{is_said} the chat cannot be answered: {error}") from error
        room = longest - len(longer["prompt_token_ids"])
        if room < 1:
            raise VLLMValidationError(f"{is_said} the chat is longer than {longest - 1} tokens")
        params = params.clone()
        params.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        return longer, params


async def _load(engine: AsyncLLM, adapter: UseAdapter, request: LoRARequest | None) -> None:
    if request is None:
        return
    try:
        await engine.add_lora(request)
        await engine.pin_lora(request.lora_int_id)
    except Exception as error:
        raise cannot_run(adapter, error) from error


async def _submitted(outputs: Outputs, submission: Submission) -> RequestOutput | None:
    """Return the first output of a request, which is sealed on the way to it."""
    token = SUBMISSION.set(submission)
    try:
        return await anext(outputs, None)
    finally:
        SUBMISSION.reset(token)


def answering(plain: Generate) -> Generate:
    """Return the method of an engine's client that asks it, with the answers of its `Again`."""

    def generate(
        self: AsyncLLM,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        **options: Any,
    ) -> Outputs:
        again: Again | None = getattr(self, ANSWERED_BY, None)
        ask = partial(plain, self)
        if again is None:
            return ask(prompt, sampling_params, request_id, **options)
        return again.outputs(ask, prompt, sampling_params, request_id, options)

    return generate

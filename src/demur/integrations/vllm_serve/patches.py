"""What of vLLM is replaced by the general plugin: five methods, each by itself and something more.

An engine's arguments are armed, a chat's prompt says where its turns are, each request is sealed,
flagged ones may be answered by another, and the prefix cache gives no token that read-outs need.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial, wraps
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.renderers import BaseRenderer, ChatParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.input_processor import InputProcessor

from demur.core.errors import DataError
from demur.engines._columns import LAST, Columns, Spans, spans_of
from demur.engines._stored_columns import stored
from demur.engines.vllm.prefixes import NEEDED_FROM, limited, needed_from
from demur.engines.vllm.reader import CONFIG_KEY
from demur.engines.vllm.worker import READOUTS
from demur.integrations.vllm_serve.again import RENDERED_AGAIN, answering
from demur.integrations.vllm_serve.arming import arm, is_armed
from demur.integrations.vllm_serve.asking import ASKED, SUBMISSION, Submission
from demur.integrations.vllm_serve.judge import CAN_AGAIN
from demur.integrations.vllm_serve.policy import ANSWER, ASKED_BY, ENFORCE, policy_of
from demur.integrations.vllm_serve.signing import Signer
from demur.integrations.vllm_serve.turns import (
    Holed,
    Markers,
    Messages,
    Turns,
    find_turns,
    with_safety_prompt,
)
from demur.modeling.chat import hole
from demur.modeling.gguf import cache_folder
from demur.serving.settings import Settings, load_settings

TURNS = "demur_turns"
"""In what vLLM renders of a chat: where the turns are, and in which tokens."""
_IS_OURS = "demur_replaces"


def install() -> None:
    """Replace the methods, once a process."""
    put(EngineArgs, "create_engine_config", _arming)
    put(InputProcessor, "process_inputs", _sealing)
    put(AsyncLLM, "generate", answering)
    put(BaseRenderer, "render_chat_async", _finding_turns)
    put(KVCacheManager, "get_computed_blocks", _limiting)


def put(owner: type, name: str, around: Callable[[Any], Any]) -> None:
    """Replace a method by one that is made of it, unless that was done before."""
    plain = getattr(owner, name)
    if not hasattr(plain, _IS_OURS):
        method = wraps(plain)(around(plain))
        setattr(method, _IS_OURS, True)
        setattr(owner, name, method)


def _arming(plain: Any) -> Any:
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        arm(self)
        return plain(self, *args, **kwargs)

    return create_engine_config


def _finding_turns(plain: Any) -> Any:
    async def render_chat_async(
        self: BaseRenderer,
        conversations: Sequence[Any],
        chat_params: Any,
        tok_params: Any = None,
        **options: Any,
    ) -> Any:
        if not is_armed(self.config):
            return await plain(self, conversations, chat_params, tok_params, **options)
        tok_params = tok_params or self.default_chat_tok_params
        chats = [Holed.of(messages) for messages in conversations]
        offsets_too = replace(tok_params, return_token_offsets=True)
        found, prompts = await plain(self, conversations, chat_params, offsets_too, **options)
        for messages, chat, prompt in zip(conversations, chats, prompts, strict=True):
            offsets = prompt.get("prompt_token_offsets")
            if not tok_params.return_token_offsets:
                prompt.pop("prompt_token_offsets", None)
            turns = await _turns(self, chat, prompt, offsets, chat_params)
            if turns is not None:
                prompt[TURNS] = turns, list(prompt["prompt_token_ids"])

            async def rendered_again(text: str, messages: Messages = messages) -> Any:
                again = [with_safety_prompt(messages, text)]
                _, (found,) = await plain(self, again, chat_params, tok_params, **options)
                return found

            prompt[RENDERED_AGAIN] = rendered_again
        return found, prompts

    return render_chat_async


async def _turns(
    renderer: BaseRenderer, chat: Holed, prompt: Any, offsets: Any, chat_params: Any
) -> Turns | None:
    text = prompt.get("prompt")
    if offsets is None or not isinstance(text, str):
        return None
    _, rendered = await renderer.render_messages_async(list(chat.messages), chat_params)
    with_holes: Any = rendered.get("prompt")
    if not isinstance(with_holes, str):
        return None
    return find_turns(
        chat,
        with_holes,
        text,
        token_ids=prompt["prompt_token_ids"],
        offsets=offsets,
        special_ids=_special_ids(renderer),
    )


def _special_ids(renderer: BaseRenderer) -> frozenset[int]:
    added = renderer.get_tokenizer().added_tokens_decoder
    return frozenset(token_id for token_id, token in added.items() if token.special)


@cache
def _markers(renderer: BaseRenderer) -> Markers | None:
    """Return what the chat template puts around users' texts; None if it has no such markers."""
    tokenizer = renderer.get_tokenizer()
    if not getattr(tokenizer, "is_fast", False):
        return None
    probe: list[Any] = [{"role": "user", "content": hole(0)}]
    _, prompt = renderer.render_messages(probe, ChatParams())
    rendered: Any = prompt.get("prompt")
    if not isinstance(rendered, str):
        return None
    return Markers.of(
        rendered,
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        special_ids=_special_ids(renderer),
    )


def _sealing(plain: Any) -> Any:
    def process_inputs(
        self: InputProcessor, request_id: str, prompt: Any, *args: Any, **kwargs: Any
    ) -> EngineCoreRequest:
        request = plain(self, request_id, prompt, *args, **kwargs)
        if is_armed(self.vllm_config):
            submission = SUBMISSION.get() or Submission()
            if submission.is_answer:
                _seal_answer(request, self.vllm_config)
                return request
            found = prompt.get(TURNS) if isinstance(prompt, dict) else None
            turns, token_ids = found or (None, None)
            is_chat = turns is not None and token_ids == request.prompt_token_ids
            _require_guardable(request, is_chat=is_chat)
            if not is_chat:
                markers = _markers(self.renderer)
                turns = markers and markers.turns(request.prompt_token_ids)
            _seal(request, turns, self.vllm_config, submission)
        return request

    return process_inputs


def _limiting(plain: Any) -> Any:
    def get_computed_blocks(self: KVCacheManager, request: Any) -> Any:
        return limited(partial(plain, self), request)

    return get_computed_blocks


def _seal_answer(request: EngineCoreRequest, config: VllmConfig) -> None:
    """Write into a request that it answers one which was judged: its last token alone is read."""
    columns, num_tokens = _columns(config.additional_config[CONFIG_KEY]), _num_tokens(request)
    spans = [spans_of(LAST, num_tokens, ()) for _ in columns.columns]
    statement = {"policy": ANSWER, "spans": spans, NEEDED_FROM: num_tokens - 1}
    _write(request, statement, request.sampling_params.extra_args or {})


def _seal(
    request: EngineCoreRequest, turns: Turns | None, config: VllmConfig, submission: Submission
) -> None:
    """Write what the worker has to know of a request into it, sealed.

    Raises:
        VLLMValidationError: The request asks for what it may not have.
    """
    params = request.sampling_params
    extra = dict(params.extra_args or {})
    try:
        policy = policy_of(extra.pop(ASKED_BY, None), _settings())
    except DataError as error:
        raise VLLMValidationError(str(error), parameter="vllm_xargs") from error
    columns = _columns(config.additional_config[CONFIG_KEY])
    id, num_tokens = secrets.token_hex(8), _num_tokens(request)
    spans = _spans(columns, num_tokens, turns)
    # Tokens that the prefix cache holds are not computed, and so would not be summed.
    first, is_bypassed = needed_from(
        columns.default_spans(num_tokens) if spans is None else spans,
        num_tokens,
        block_size=config.cache_config.block_size,
    )
    submission.id = id
    submission.can_be_answered_again &= policy == ENFORCE
    statement = {
        "id": id,
        "policy": policy,
        "spans": spans,
        "forged": turns is not None and turns.has_forged_markers,
        CAN_AGAIN: submission.can_be_answered_again,
        NEEDED_FROM: first,
    }
    _write(request, statement, extra)
    params.skip_reading_prefix_cache = is_bypassed or params.skip_reading_prefix_cache
    asked = ASKED.get()
    if asked is not None:
        asked.ids.append(id)
        asked.num_cache_bypassed += is_bypassed


def _write(
    request: EngineCoreRequest, statement: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    sealed = Signer.shared().sealed(statement, request.prompt_token_ids)
    request.sampling_params.extra_args = {**extra, CONFIG_KEY: sealed}


def _num_tokens(request: EngineCoreRequest) -> int:
    return len(request.prompt_token_ids)


def _require_guardable(request: EngineCoreRequest, *, is_chat: bool) -> None:
    """Refuse what is not guarded.

    Raises:
        VLLMValidationError: The request is such; the message names why.
    """
    params = request.sampling_params
    refused = {
        "pooling": not isinstance(params, SamplingParams),
        "images and other parts that are no text": bool(request.mm_features),
        "prompt embeddings": request.prompt_embeds is not None,
        "input that is streamed": request.resumable,
        "LoRA adapters, for which no detector is calibrated": request.lora_request is not None,
        "prompts that are no chats": not is_chat and _settings().vllm.raw_prompts == "refuse",
        "prompt_logprobs and echo with logprobs, which tell what the model would say": (
            getattr(params, "prompt_logprobs", None) is not None
        ),
    }
    found = [name for name, is_asked in refused.items() if is_asked]
    if found:
        raise VLLMValidationError(f"the guard of this server refuses {' and '.join(found)}")


def _spans(columns: Columns, num_tokens: int, turns: Turns | None) -> Spans | None:
    """Return what each column reads; None leaves it to the worker, which then reads all."""
    if turns is None:
        return None
    return [spans_of(column.spec, num_tokens, turns.users) for column in columns.columns]


@cache
def _settings() -> Settings:
    return load_settings(None, {})


@cache
def _columns(sha256: str) -> Columns:
    return stored(sha256, cache_folder() / READOUTS)

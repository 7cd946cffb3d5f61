"""`POST /v1/chat/completions`: whole or as a stream of server-sent events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from demur.core.errors import DataError
from demur.core.results import STOPPED, Token
from demur.core.types import Chat, Sampling
from demur.serving.answers import Answer, Call
from demur.serving.chat_reply import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    TokenLogprob,
    Usage,
)
from demur.serving.chat_request import ChatRequest
from demur.serving.clients import service_of, while_connected
from demur.serving.errors import ApiError, documented, invalid
from demur.serving.records import REFUSE
from demur.serving.service import Service
from demur.serving.verdicts import inline

PATH = "/v1/chat/completions"
DONE = format_sse_event(data_str="[DONE]")

router = APIRouter()


@router.post(
    PATH,
    response_model=ChatCompletion,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **documented(400, 401, 404, 408, 413, 429, 503, 504),
    },
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a chat under the guard."""
    service = service_of(request)
    service.require_ready()
    completion = Completion.of(body, service)
    async with asyncio.timeout_at(completion.ends_at):
        answer = await while_connected(request, completion.begin())
        return await while_connected(request, completion.response(answer))


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Completion:
    """One request, and what all its parts have in common."""

    body: ChatRequest
    service: Service
    chat: Chat
    id: str
    created: int
    opened_at: float = field(default_factory=_loop_time)

    @property
    def ends_at(self) -> float:
        """When the replies have to be complete, by the event loop's clock."""
        return self.opened_at + self.service.settings.limits.request_timeout_s

    @classmethod
    def of(cls, body: ChatRequest, service: Service) -> "Completion":
        """Check a request.

        Raises:
            ApiError: It asks for another model, or for more than the server allows.
        """
        limits = service.settings.limits
        if body.model != service.model_name:
            raise ApiError(
                404,
                f"model: there is no model {body.model[:64]!r}, only {service.model_name!r}",
                param="model",
                code="model_not_found",
            )
        if (body.n or 1) > limits.max_choices:
            raise invalid("n", f"more than the {limits.max_choices} that are allowed")
        if len(body.messages) > limits.max_messages:
            raise invalid("messages", f"more than the {limits.max_messages} that are allowed")
        try:
            chat = body.chat
        except DataError as error:
            raise ApiError(
                400, f"messages: {error}", param="messages", code="invalid_prompt"
            ) from error
        return cls(body, service, chat, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))

    async def begin(self) -> Answer:
        """Queue the chat and wait until it is decided on."""
        call = Call(PATH, self.id, self.body.safety_identifier or self.body.user)
        return await Answer.begin(
            self.service,
            self.chat,
            self.sampling(),
            call=call,
            n=self.body.n or 1,
            wants_logprobs=bool(self.body.logprobs),
        )

    def sampling(self) -> Sampling:
        """Return how replies are drawn."""
        settings = self.service.settings
        return self.body.sampling(
            default_max_tokens=settings.default_max_tokens,
            max_tokens=settings.limits.max_tokens,
            seed=secrets.randbits(63),
        )

    async def response(self, answer: Answer) -> Response:
        """Return the completion, whole or as a stream that begins.

        Raises:
            ApiError: A reply of a whole completion failed.
        """
        headers = {"x-request-id": self.id, **answer.report().headers}
        if not self.body.stream:
            whole = await self.whole(answer)
            return JSONResponse(whole.model_dump(exclude_none=False), headers=headers)
        headers["cache-control"] = "no-cache"
        return EventStream(self, answer, headers=headers)

    async def whole(self, answer: Answer) -> ChatCompletion:
        """Return the whole completion.

        Raises:
            ApiError: A reply failed.
        """
        try:
            choices = await asyncio.gather(
                *(self._choice(answer, number) for number in range(len(answer.exchanges)))
            )
        finally:
            answer.close()
        found = answer.report()
        return ChatCompletion(
            **self._common(),
            choices=choices,
            usage=self._usage(answer),
            moderation=inline(found) if self.body.moderation else None,
            demur=found,
        )

    async def _choice(self, answer: Answer, number: int) -> Choice:
        tokens = [token async for token in answer.tokens(number)]
        text = "".join(token.text for token in tokens)
        is_refusal = answer.exchanges[number].route == REFUSE
        return Choice(
            index=number,
            message=AssistantMessage(
                content=None if is_refusal else text, refusal=text if is_refusal else None
            ),
            finish_reason=_finish_reason(answer, number),
            logprobs=self._logprobs(tokens, is_refusal=is_refusal),
        )

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """Yield the completion as server-sent events; a failure half way is the last one."""
        chunks = self._chunks(answer)
        try:
            while (chunk := await self._in_time(chunks)) is not None:
                yield _event(chunk)
        except TimeoutError:
            yield self._failed(timed_out())
        except ApiError as error:
            yield self._failed(error)
        yield DONE

    async def _in_time(
        self, chunks: AsyncIterator[ChatCompletionChunk]
    ) -> ChatCompletionChunk | None:
        """Return the next chunk; None after the last one.

        Raises:
            TimeoutError: The request's time is over; how slowly a client reads does not count.
        """
        async with asyncio.timeout_at(self.ends_at):
            return await anext(chunks, None)

    def _failed(self, error: ApiError) -> bytes:
        self.service.metrics.count_error(PATH, error.body.error.code or "error")
        return _event(error.body)

    async def _chunks(self, answer: Answer) -> AsyncIterator[ChatCompletionChunk]:
        for number in range(len(answer.exchanges)):
            yield self._chunk(ChunkChoice(index=number, delta=Delta(role="assistant", content="")))
        async for number, token in _merged(answer):
            if token is not None:
                yield self._chunk(self._piece(answer, number, token))
                continue
            end = self._chunk(
                ChunkChoice(
                    index=number, delta=Delta(), finish_reason=_finish_reason(answer, number)
                )
            )
            found = answer.report()
            moderation = inline(found) if self.body.moderation else None
            yield end.model_copy(update={"demur": found, "moderation": moderation})
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield ChatCompletionChunk(**self._common(), choices=[], usage=self._usage(answer))

    def _piece(self, answer: Answer, number: int, token: Token) -> ChunkChoice:
        is_refusal = answer.exchanges[number].route == REFUSE
        delta = Delta(refusal=token.text) if is_refusal else Delta(content=token.text)
        return ChunkChoice(
            index=number,
            delta=delta,
            logprobs=self._logprobs([token], is_refusal=is_refusal),
        )

    def _chunk(self, choice: ChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._common(), choices=[choice])

    def _common(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.body.model}

    def _usage(self, answer: Answer) -> Usage:
        drawn = sum(len(exchange.tokens) for exchange in answer.exchanges)
        return Usage.of(answer.num_prompt_tokens, drawn)

    def _logprobs(self, tokens: list[Token], *, is_refusal: bool) -> ChoiceLogprobs | None:
        if not self.body.logprobs:
            return None
        found = [
            TokenLogprob(token=token.text, logprob=token.logprob, bytes=list(token.text.encode()))
            for token in tokens
        ]
        return ChoiceLogprobs(refusal=found) if is_refusal else ChoiceLogprobs(content=found)


class EventStream(StreamingResponse):
    """A completion's events; however they end, also unread, their answer is let go of.

    Args:
        completion: Whose events are sent.
        answer: They are of.
        headers: Of the response.
    """

    def __init__(
        self, completion: Completion, answer: Answer, *, headers: Mapping[str, str]
    ) -> None:
        events = completion.events(answer)
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def _merged(answer: Answer) -> AsyncIterator[tuple[int, Token | None]]:
    """Yield the tokens of all replies as they come, each with its number; None ends a reply.

    Raises:
        ApiError: A reply failed.
    """
    arrived: asyncio.Queue[tuple[int, Token | Exception | None]] = asyncio.Queue()

    async def forward(number: int) -> None:
        try:
            async for token in answer.tokens(number):
                arrived.put_nowait((number, token))
            arrived.put_nowait((number, None))
        except Exception as error:  # raised where it is waited for
            arrived.put_nowait((number, error))

    tasks = [asyncio.create_task(forward(number)) for number in range(len(answer.exchanges))]
    num_open = len(tasks)
    try:
        while num_open:
            number, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            num_open -= item is None
            yield number, item
    finally:
        for task in tasks:
            task.cancel()


def _finish_reason(answer: Answer, number: int) -> FinishReason:
    exchange = answer.exchanges[number]
    if exchange.route in (REFUSE, STOPPED):
        return "content_filter"
    return "length" if exchange.finish_reason == "length" else "stop"


def _event(body: BaseModel) -> bytes:
    found = body.model_dump(exclude_none=True)
    if isinstance(body, ChatCompletionChunk) and body.demur is not None:
        found["demur"] = body.demur.model_dump()
    for choice in found.get("choices", ()):
        choice.setdefault("finish_reason", None)  # clients look it up in every chunk
    return format_sse_event(data_str=json.dumps(found, ensure_ascii=False))


def timed_out() -> ApiError:
    """Return the answer to a request that took too long."""
    return ApiError(504, "the reply was not complete in time", type="server_error", code="timeout")

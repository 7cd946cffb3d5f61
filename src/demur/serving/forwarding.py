"""The endpoints of a server whose local model only judges, and an upstream answers.

A request goes on as it came unless it is flagged, and the reply comes back as it is. No byte of a
reply is sent before the verdict. What the guard does not know is not passed on.
"""

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from typing import Self

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response

from demur.core.results import ERROR
from demur.serving.answers import ABANDONED, Answer, Call
from demur.serving.chat import PATH, Completion
from demur.serving.chat_request import ChatMessage, ChatRequest, StreamOptions
from demur.serving.clients import service_of, while_connected
from demur.serving.errors import ApiError, documented, invalid, unsupported
from demur.serving.judged_chat import JudgedChat, judged_chat
from demur.serving.judging import judge
from demur.serving.passing import Passing
from demur.serving.proxy_headers import Header, request_headers, response_headers
from demur.serving.upstream import content_of
from demur.serving.upstream_request import UpstreamRequest

MODEL_NAME = re.compile(r"[\w.:/@+-]{1,128}")
"""What the audit log holds of a model's name: it is the client's text, and must not be a prompt."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

router = APIRouter()
others = APIRouter()
"""Refuses every other path under /v1; included last."""


@router.post(
    PATH,
    responses=documented(400, 401, 408, 413, 429, 502, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    },
)
async def forward_chat_completion(request: Request) -> Response:
    """Let the upstream answer a chat, unless it is flagged."""
    service_of(request).require_ready()
    forwarding = Forwarding.of(request, await request.body())
    return await while_connected(request, forwarding.answer())


@router.get("/v1/models")
async def forward_models(request: Request) -> Response:
    """List the upstream's models."""
    service = service_of(request)
    service.require_ready()
    await request.body()
    async with asyncio.timeout(service.settings.limits.request_timeout_s):
        return await while_connected(request, _models(request))


@others.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
async def refuse_other_path(path: str, request: Request) -> Response:
    """Say that a path does not exist: what the guard cannot judge must not reach the upstream."""
    raise ApiError(
        404,
        f"{request.method} /v1/{path[:64]} is not passed on: this server knows "
        f"{PATH}, /v1/models and /v1/moderations",
        code="not_found",
    )


async def _models(request: Request) -> Response:
    response = await service_of(request).upstream.send(
        "GET", "/models", headers=_headers(request), content=b""
    )
    whole = Response(await content_of(response), response.status_code)
    whole.raw_headers = [
        *response_headers(response.headers.raw),
        (b"content-length", str(len(whole.body)).encode()),
    ]
    return whole


def _headers(request: Request) -> list[Header]:
    """Return the headers that go on to the upstream."""
    settings = service_of(request).settings
    key = settings.upstream.api_key
    return request_headers(
        request.headers.raw,
        api_key=None if key is None else key.get_secret_value(),
        passes_credentials=not settings.api_keys,
    )


@dataclass(frozen=True)
class Forwarding:
    """One request for a chat completion, on its way."""

    asked: UpstreamRequest
    judged: JudgedChat
    headers: list[Header]
    """For the upstream."""
    local: Completion
    """Answers, if the request is flagged."""

    @classmethod
    def of(cls, request: Request, content: bytes) -> Self:
        """Read a request.

        Raises:
            ApiError: It cannot be read, or holds parts that no detector reads.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise ApiError(415, f"content-encoding is {encoding[:32]!r}: expected none")
        service = service_of(request)
        limit, upstream = service.settings.limits.max_messages, service.settings.upstream
        asked = UpstreamRequest.read(content)
        if len(asked.messages) > limit:
            raise invalid("messages", f"more than the {limit} that are allowed")
        judged = judged_chat(asked.messages)
        if judged.unscanned and upstream.on_unscanned == "refuse":
            raise unsupported(judged.unscanned[0], "this server's detectors read texts only")
        body = ChatRequest(
            model=asked.model,
            messages=[ChatMessage(role=m.role, content=m.content) for m in judged.chat.messages],
            stream=asked.is_streamed,
            stream_options=StreamOptions(include_usage=True)
            if asked.is_streamed and asked.includes_usage
            else None,
        )
        id = f"chatcmpl-{secrets.token_hex(12)}"
        local = Completion(body, service, judged.chat, id, int(time.time()))
        return cls(asked, judged, _headers(request), local)

    async def answer(self) -> Response:
        """Judge the request, and return the upstream's answer or our own.

        Raises:
            ApiError: It was blocked, cannot be judged, or the upstream failed.
            TimeoutError: It took too long.
        """
        service = self.local.service
        call = Call(PATH, self.local.id, self.asked.identifier, self.judged.unscanned)
        is_early = service.settings.upstream.speculative
        sending = asyncio.create_task(self._send()) if is_early else None
        sent_at = time.perf_counter()
        try:
            async with asyncio.timeout(service.settings.limits.request_timeout_s):
                found = await judge(service, self.judged, sampling=self.local.sampling(), call=call)
        except BaseException:
            await _dismiss(sending)
            raise
        if isinstance(found, Answer):
            await _dismiss(sending)
            return await self._answered_here(found)
        sent_at = sent_at if is_early else time.perf_counter()
        model = self.asked.model if MODEL_NAME.fullmatch(self.asked.model) else "unknown"
        passing = Passing(service, call, model, exchange=found, sent_at=sent_at)
        return await self._passed_on(passing, sending or asyncio.create_task(self._send()))

    async def _answered_here(self, answer: Answer) -> Response:
        async with asyncio.timeout(answer.service.settings.limits.request_timeout_s):
            return await self.local.response(answer)

    async def _passed_on(self, passing: Passing, sending: asyncio.Task[httpx.Response]) -> Response:
        service = passing.service
        try:
            async with asyncio.timeout(service.settings.limits.request_timeout_s):
                return await passing.answer(await sending)
        except TimeoutError:
            await passing.give_up("timeout")
            raise
        except ApiError as error:
            await passing.give_up(error.body.error.code or ERROR)
            raise
        except asyncio.CancelledError:
            service.do_later(passing.give_up(ABANDONED))
            raise

    async def _send(self) -> httpx.Response:
        return await self.local.service.upstream.send(
            "POST", "/chat/completions", headers=self.headers, content=self.asked.content
        )


async def _dismiss(sending: asyncio.Task[httpx.Response] | None) -> None:
    """Take back a request that must not be answered."""
    if sending is None:
        return
    sending.cancel()
    (response,) = await asyncio.gather(sending, return_exceptions=True)
    if isinstance(response, httpx.Response):
        await response.aclose()

"""`POST /v1/moderations`: judges texts without answering them."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from demur.core.errors import DataError
from demur.core.types import Chat, Sampling
from demur.serving.answers import Answer, Call
from demur.serving.clients import service_of, while_connected
from demur.serving.errors import ApiError, documented, invalid, unsupported
from demur.serving.service import Service
from demur.serving.verdicts import GuardReport, openai_result

PATH = "/v1/moderations"
SCORE_ONLY = Sampling(max_tokens=0)

router = APIRouter()


class ModerationPart(BaseModel):
    """A part of one input."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    type: str
    text: str | None = None


class ModerationRequest(BaseModel):
    """Texts to be judged."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    input: str | Annotated[list[str], Field(min_length=1)] | list[ModerationPart]
    """A text, several, or the parts of one."""
    model: str | None = None
    """Any name: the server's own detectors judge."""

    @model_validator(mode="after")
    def _refuse_nothing(self) -> "ModerationRequest":
        if not self.input:
            raise invalid("input", "it is empty: there is nothing to judge")
        return self

    def require_at_most(self, limit: int) -> None:
        """Refuse more inputs than are allowed.

        Raises:
            ApiError: There are more.
        """
        if not isinstance(self.input, str) and len(self.input) > limit:
            raise invalid("input", f"{len(self.input)} are more than the {limit} that are allowed")

    @property
    def texts(self) -> list[str]:
        """The texts, each of which gets a result; the parts of one input are one text.

        Raises:
            ApiError: A part is something else than text.
        """
        if isinstance(self.input, str):
            return [self.input]
        texts = [item for item in self.input if isinstance(item, str)]
        parts = [item for item in self.input if isinstance(item, ModerationPart)]
        for number, part in enumerate(parts):
            if part.type != "text" or part.text is None:
                raise unsupported(f"input.{number}", f"detectors read texts, not {part.type!r}")
        return texts or ["\n".join(part.text or "" for part in parts)]


class ModerationResultBody(BaseModel):
    """The verdict on one text; a category without a fitted head is null, and named."""

    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    unsupported_categories: list[str]
    demur: GuardReport


class ModerationResponse(BaseModel):
    """The verdicts, in the order of the texts."""

    id: str
    model: str
    results: list[ModerationResultBody]


@router.post(
    PATH,
    response_model=ModerationResponse,
    responses=documented(400, 401, 408, 413, 429, 503, 504),
)
async def create_moderation(body: ModerationRequest, request: Request) -> Response:
    """Judge texts as prompts."""
    service = service_of(request)
    service.require_ready()
    body.require_at_most(service.settings.limits.max_moderation_inputs)
    id = f"modr-{secrets.token_hex(12)}"
    judged = (_judged(service, text, f"{id}-{number}") for number, text in enumerate(body.texts))
    async with asyncio.timeout(service.settings.limits.request_timeout_s):
        found = await while_connected(request, _all(judged))
    return moderation(id, [of.name for of in service.guard.detectors], found)


def moderation(id: str, detectors: Sequence[str], found: Sequence[GuardReport]) -> Response:
    """Return the answer to a request.

    Args:
        id: Of the request.
        detectors: Names of those that judged.
        found: On each text.
    """
    response = ModerationResponse(
        id=id,
        model=",".join(detectors),
        results=[ModerationResultBody.model_validate(openai_result(of)) for of in found],
    )
    return JSONResponse(response.model_dump(), headers={"x-request-id": id})


async def _all(judged: Any) -> list[GuardReport]:
    return list(await asyncio.gather(*judged))


def chat_of(text: str) -> Chat:
    """Return the chat that a text is judged as.

    Raises:
        ApiError: It is empty, or no text.
    """
    try:
        return Chat.from_text(text)
    except DataError as error:
        raise ApiError(400, f"input: {error}", param="input", code="invalid_prompt") from error


async def _judged(service: Service, text: str, id: str) -> GuardReport:
    """Return what the detectors say of a text.

    Raises:
        ApiError: It cannot be judged.
    """
    answer = await Answer.begin(service, chat_of(text), SCORE_ONLY, call=Call(PATH, id))
    async for _ in answer.tokens(0):
        pass
    return answer.report()

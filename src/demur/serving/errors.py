"""Errors as OpenAI's clients know them: a status, and a body that says what is wrong with what."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

INVALID = "invalid_request_error"


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    """The field of the request, if it is about one."""
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of an answer that is none."""

    error: ErrorBody


class ApiError(Exception):
    """A request that is refused or failed.

    Args:
        status: Of HTTP.
        message: For people; no prompt text.
        type: A kind of error, as OpenAI names them.
        param: The field of the request that it is about.
        code: For programs.
        headers: Of the answer.
        extra: Fields of the body beside `error`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(
            error=ErrorBody(message=message, type=type, param=param, code=code)
        )
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def as_dict(self) -> dict[str, Any]:
        """Return the body."""
        return {**self.body.model_dump(), **self.extra}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the interface's description says of answers that are none."""
    named: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in statuses
    }
    return {**named, "4XX": {"model": ErrorResponse, "description": "Refused"}}


def unsupported(param: str, why: str) -> ApiError:
    """Return the error for a field that this server cannot do."""
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_parameter")


def invalid(param: str, why: str) -> ApiError:
    """Return the error for a field with a value that nobody can do."""
    return ApiError(400, f"{param}: {why}", param=param, code="invalid_value")

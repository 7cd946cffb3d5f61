"""Puts the server together: endpoints, the gate before them, and errors in OpenAI's form."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import demur
from demur.serving import chat, forwarding, moderations, status
from demur.serving.chat import timed_out
from demur.serving.clients import ClientLeftError, service_of
from demur.serving.errors import ApiError
from demur.serving.gate import Gate
from demur.serving.service import Loaded, Service, load_guard
from demur.serving.settings import Settings

log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""What logs say of a request whose client left; nobody reads the answer."""


def ignore_failure(error: Exception) -> None:
    """Leave it to the probes to tell that the guard could not be loaded."""


def create_app(
    settings: Settings,
    *,
    load: Callable[[Settings], Loaded] = load_guard,
    on_load_failure: Callable[[Exception], None] = ignore_failure,
) -> FastAPI:
    """Return the ASGI application.

    Args:
        settings: Of the server.
        load: Loads the guard, in a thread, when the application starts.
        on_load_failure: Called when that fails; the application stays up, and not ready.
    """
    service = Service(settings, load=load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, on_load_failure))
        yield
        await loading
        await service.stop()

    app = FastAPI(
        title="demur",
        summary="A guarded chat model.",
        version=demur.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for router in _routers(settings):
        app.include_router(router)
    app.add_middleware(
        Gate,
        api_keys=[key.get_secret_value() for key in settings.api_keys],
        max_bytes=settings.limits.max_request_bytes,
        body_timeout_s=settings.limits.request_timeout_s,
    )
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(TimeoutError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(ClientLeftError, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    return app


def _routers(settings: Settings) -> tuple[APIRouter, ...]:
    """Return the endpoints; those that refuse all other paths come last."""
    if settings.upstream.url is None:
        return chat.router, status.models_router, moderations.router, status.router
    return forwarding.router, moderations.router, status.router, forwarding.others


async def _load(service: Service, on_failure: Callable[[Exception], None]) -> None:
    try:
        await service.start()
    except Exception as error:
        log.debug("the guard could not be loaded", exc_info=error)
        on_failure(error)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer a request that was refused or failed, and count it."""
    found = _as_api_error(error)
    if found is None:
        service_of(request).metrics.count_error(_endpoint(request), "client_left")
        return Response(status_code=CLIENT_LEFT)
    code = found.body.error.code or "error"
    service_of(request).metrics.count_error(_endpoint(request), code)
    return JSONResponse(found.as_dict(), status_code=found.status, headers=found.headers)


def _as_api_error(error: Exception) -> ApiError | None:
    """Return what to tell the client; None if it left."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientLeftError):
        return None
    if isinstance(error, TimeoutError):
        return timed_out()
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        headers = dict(error.headers or {})
        return ApiError(error.status_code, str(error.detail), code=code, headers=headers)
    log.error("a request failed", exc_info=error)
    return ApiError(
        503, "the server failed at this request", type="server_error", code="internal_error"
    )


def _invalid(error: RequestValidationError) -> ApiError:
    """Name the first field that is wrong, and never its value: it may be a prompt."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    message = first["msg"] if param is None else f"{param}: {first['msg']}"
    return ApiError(400, message, param=param, code="invalid_value")


def _endpoint(request: Request) -> str:
    """Return the route's own path: what a client asked for must not become a label."""
    route = request.scope.get("route")
    return str(getattr(route, "path", "unknown"))

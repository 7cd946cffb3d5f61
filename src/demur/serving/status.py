"""What operators and their tools ask: is it alive, ready, which model, which version, how much."""

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

import demur
from demur.serving.clients import service_of
from demur.serving.errors import documented

router = APIRouter()
models_router = APIRouter()
"""The model's card: an upstream has its own."""


@router.get("/livez", response_class=PlainTextResponse)
async def is_alive() -> str:
    """Say that the process answers."""
    return "alive"


class Readiness(BaseModel):
    """Whether prompts are answered."""

    status: Literal["ready", "not ready"]
    reason: str | None
    """Why not."""


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
@router.get("/health", response_model=Readiness, responses={503: {"model": Readiness}})
async def is_ready(request: Request) -> Response:
    """Say whether prompts are answered, and if not, why."""
    problem = service_of(request).problem
    body = Readiness(status="ready" if problem is None else "not ready", reason=problem)
    return JSONResponse(body.model_dump(), status_code=200 if problem is None else 503)


@router.get("/version", responses=documented(401))
async def version(request: Request) -> dict[str, object]:
    """Name the version, the model and the detectors."""
    service = service_of(request)
    if not service.is_loaded:
        return {"version": demur.__version__}
    guard = service.guard
    return {
        "version": demur.__version__,
        "model": guard.engine.model_id.as_dict(),
        "detectors": guard.versions,
        "audit_head": service.records.head,
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Give Prometheus what it counts."""
    body = generate_latest(service_of(request).metrics.registry)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@models_router.get("/v1/models", responses=documented(401, 503))
async def models(request: Request) -> dict[str, object]:
    """List the one model."""
    service = service_of(request)
    service.require_ready()
    card = {
        "id": service.model_name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "demur",
    }
    return {"object": "list", "data": [card]}

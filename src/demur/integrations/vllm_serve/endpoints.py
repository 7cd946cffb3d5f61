"""The plugin of vLLM's API server: /v1/moderations, reports on responses, and the self-test."""

import asyncio
import secrets
from argparse import Namespace
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.exceptions import VLLMValidationError

from demur.core.errors import ConfigError
from demur.integrations.vllm_serve import NAME
from demur.integrations.vllm_serve.arming import is_armed
from demur.integrations.vllm_serve.desk import Counters, Desk
from demur.integrations.vllm_serve.patches import put
from demur.integrations.vllm_serve.reporting import Reporting
from demur.serving.errors import ApiError, documented
from demur.serving.moderations import PATH, ModerationRequest, ModerationResponse, moderation
from demur.serving.settings import load_settings

router = APIRouter()


class Endpoints:
    """What vLLM's API server gets of the guard; see `vllm.plugins.endpoint_plugins`."""

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._settings = load_settings(None, {})
        self._desk: Desk | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the endpoint and the reports."""
        put(BeamSearchOnlineMixin, "beam_search", _refusing)
        app.include_router(router)
        app.add_exception_handler(ApiError, _answer_error)
        app.add_middleware(Reporting, desk=self._require_desk)

    def _require_desk(self) -> Desk:
        assert self._desk is not None, "vLLM serves after init_state"
        return self._desk

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Replay the detectors' fingerprints; vLLM does not start if they have moved.

        Raises:
            ConfigError: The engine is not guarded.
            DemurError: See `Desk.open`.
        """
        if engine_client is None or not is_armed(engine_client.vllm_config):
            raise ConfigError("this server's engine is not guarded: start it through vllm serve")
        self._desk = state.demur = Desk(self._settings, engine_client, state, counters=Counters())
        await self._desk.open()


def _refusing(plain: Any) -> Any:
    async def beam_search(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        raise VLLMValidationError(
            "the guard of this server refuses beam search, which draws from log-probabilities",
            parameter="use_beam_search",
        )
        yield

    return beam_search


@router.post(PATH, response_model=ModerationResponse, responses=documented(400, 503))
async def create_moderation(body: ModerationRequest, request: Request) -> Response:
    """Judge texts as prompts."""
    desk: Desk = request.app.state.demur
    body.require_at_most(desk.settings.limits.max_moderation_inputs)
    found = await asyncio.gather(*(desk.score(text) for text in body.texts))
    return moderation(f"modr-{secrets.token_hex(12)}", desk.detectors, found)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "the handler of its kind"
    return JSONResponse(error.as_dict(), status_code=error.status, headers=error.headers)

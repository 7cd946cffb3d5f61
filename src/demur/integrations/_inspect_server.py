"""inspect_ai's provider `demur`: asks a server over HTTP.

Its own client, since what a server of demur says beside OpenAI's fields (the verdicts, also of a
blocked prompt) has to reach the log, and since not every 503 is worth another try: a prompt that
could not be scored will not be scored the second time either.
"""

import os
from typing import Any

import httpx
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelCall,
    ModelOutput,
    RetryDecision,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from demur.core.errors import ConfigError, DemurError
from demur.integrations._inspect_wire import output_of, refused_output, request_of

BASE_URL = "http://127.0.0.1:8000/v1"
URL_VARIABLE, KEY_VARIABLE = "DEMUR_BASE_URL", "DEMUR_API_KEY"
CONNECT_S = 10.0
"""How long inspect_ai waits for a reply is its own to say."""
WORTH_ANOTHER_TRY = frozenset({"not_ready", "overloaded", "timeout", "upstream_unreachable"})
"""Codes of errors that may be gone in a while."""


class AnswerError(DemurError, RuntimeError):
    """The server has no reply to a request.

    Args:
        status: Of HTTP.
        code: What the server calls it.
        message: For people.
    """

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(f"HTTP {status}, {code}: {message}")
        self.status, self.code = status, code


class ServerAPI(ModelAPI):
    """Asks a server of demur.

    Args:
        model_name: What the server calls its model.
        base_url: Its address up to `/v1`; else the variable DEMUR_BASE_URL, else port 8000 here.
        api_key: One of its `api_keys`; else the variable DEMUR_API_KEY.
        config: How replies are drawn.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - inspect_ai's own default
    ) -> None:
        super().__init__(model_name, base_url, api_key, [KEY_VARIABLE], config)
        self._url = (base_url or os.environ.get(URL_VARIABLE) or BASE_URL).rstrip("/")
        self._http: httpx.AsyncClient | None = None

    async def open(self) -> httpx.AsyncClient:
        """Return the client, a new one if there is none."""
        if self._http is None:
            key = self.api_key or os.environ.get(KEY_VARIABLE)
            self._http = httpx.AsyncClient(
                base_url=self._url,
                transport=await self.transport(),
                headers={} if key is None else {"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(None, connect=CONNECT_S),
            )
        return self._http

    async def transport(self) -> httpx.AsyncBaseTransport | None:
        """Return how the server is reached; None is the network."""
        return None

    async def aclose(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> tuple[ModelOutput | Exception, ModelCall]:
        """Answer a chat.

        Raises:
            AnswerError: There is no reply now, and perhaps there is one in a while.
            ConfigError: There is no server.
        """
        http = await self.open()
        body = await request_of(
            self.service_model_name(), input, tools=tools, tool_choice=tool_choice, config=config
        )
        try:
            response = await http.post("/chat/completions", json=body, headers=config.extra_headers)
        except httpx.ConnectError as error:
            raise ConfigError(
                f"there is no server at {self._url}: start `demur serve`, or give its address as "
                f"--model-base-url or {URL_VARIABLE}"
            ) from error
        answer = _json_of(response)
        call = ModelCall.create(body, answer, time=response.elapsed.total_seconds())
        return await self._output(response.status_code, answer), call

    async def _output(self, status: int, answer: dict[str, Any]) -> ModelOutput | Exception:
        """Return a reply, or why there is none.

        Raises:
            AnswerError: There may be one in a while.
        """
        if status == httpx.codes.OK:
            return await output_of(answer)
        refused = refused_output(self.model_name, answer)
        if refused is not None:
            return refused
        error = answer.get("error") or {}
        failed = AnswerError(status, error.get("code"), str(error.get("message")))
        if self.should_retry(failed) or self.is_auth_failure(failed):
            raise failed
        return failed

    def should_retry(self, ex: Exception) -> bool | RetryDecision:
        """Tell whether another try may help."""
        if isinstance(ex, AnswerError) and ex.status == httpx.codes.TOO_MANY_REQUESTS:
            return RetryDecision.rate_limit()
        if isinstance(ex, AnswerError):
            return ex.code in WORTH_ANOTHER_TRY
        return isinstance(ex, httpx.TransportError)

    def is_auth_failure(self, ex: Exception) -> bool:
        """Tell whether the key was refused."""
        return isinstance(ex, AnswerError) and ex.status == httpx.codes.UNAUTHORIZED

    def connection_key(self) -> str:
        """Name what shares a limit of connections: the server."""
        return f"{self._url}:{self.model_name}"


def _json_of(response: httpx.Response) -> dict[str, Any]:
    """Return a body; one that is none, of something between us and the server, has no fields."""
    try:
        found = response.json()
    except ValueError:
        return {"error": {"message": f"not JSON but {response.headers.get('content-type')}"}}
    return found if isinstance(found, dict) else {}

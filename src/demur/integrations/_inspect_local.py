"""inspect_ai's provider `demur-local`: the server's own application, called in this process.

No port and no second process, but the same settings, batching, verdicts and refusals.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
from inspect_ai.model import GenerateConfig

from demur.core.errors import ModelMismatchError
from demur.guard import Guard
from demur.integrations._inspect_server import ServerAPI
from demur.serving.app import create_app
from demur.serving.service import Loaded, Service, load_guard
from demur.serving.settings import Settings, load_settings


class LocalAPI(ServerAPI):
    """Guards a model in this process.

    Args:
        model_name: The setting `model`: `embedded`, a folder, a `.gguf` file or a hub name.
        base_url: Not used.
        api_key: Not used.
        config: How replies are drawn.
        guard: A guard that is there already; its own model answers, whatever `model_name` says.
        guard_toml: A file of settings; None takes the one that DEMUR_GUARD names, if any. What is
            given below wins over it.
        detectors: The setting `detectors`: one, or several.
        responder: The setting `responder`.
        on_flagged: The setting `on_flagged`.
        fpr: The setting `fpr`.
        observe: The setting `observe`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - inspect_ai's own default
        *,
        guard: Guard | None = None,
        guard_toml: str | None = None,
        detectors: str | Sequence[str] | None = None,
        responder: str | None = None,
        on_flagged: str | None = None,
        fpr: float | None = None,
        observe: bool | None = None,
    ) -> None:
        super().__init__(model_name, "http://demur-local/v1", None, config)
        given = {
            "model": model_name,
            "detectors": (detectors,) if isinstance(detectors, str) else detectors,
            "responder": responder,
            "on_flagged": on_flagged,
            "fpr": fpr,
            "observe": observe,
            "api_keys": (),
        }
        overrides = {name: value for name, value in given.items() if value is not None}
        self._settings = load_settings(None if guard_toml is None else Path(guard_toml), overrides)
        self._guard = guard
        self._service: Service | None = None
        self._starting = asyncio.Lock()

    def service_model_name(self) -> str:
        """Return what the application calls its model, once it is there."""
        return self.model_name if self._service is None else self._service.model_name

    async def open(self) -> httpx.AsyncClient:
        """Load the guard, the first time."""
        async with self._starting:
            return await super().open()

    async def transport(self) -> httpx.AsyncBaseTransport:
        """Start the application, and return the way to it.

        Raises:
            DemurError: Model, detectors and settings do not fit together.
        """
        app = create_app(self._settings, load=self._load)
        service: Service = app.state.service
        await service.start()
        self._service = service
        return httpx.ASGITransport(app)

    def _load(self, settings: Settings) -> Loaded:
        loaded = load_guard(settings) if self._guard is None else Loaded(self._guard)
        if loaded.problem is not None:
            raise ModelMismatchError(loaded.problem)
        return loaded

    async def aclose(self) -> None:
        """Let go of the guard."""
        await super().aclose()
        service, self._service = self._service, None
        if service is not None:
            await service.stop()

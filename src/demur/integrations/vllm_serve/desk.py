"""Where the API process gets verdicts: they are fetched from the worker, and counted."""

import secrets
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from prometheus_client import REGISTRY, Counter
from starlette.datastructures import State
from vllm import SamplingParams
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.v1.engine.async_llm import AsyncLLM

from demur.core.errors import DataError
from demur.guard.fingerprint import FINGERPRINT_TEXTS, require_alike
from demur.guard.loading import Opened, open_artifact
from demur.integrations.vllm_serve.again import ANSWERED_BY, Again
from demur.integrations.vllm_serve.arming import model_of
from demur.integrations.vllm_serve.asking import ASKED, Asked
from demur.integrations.vllm_serve.policy import ASKED_BY, SCORE
from demur.integrations.vllm_serve.signing import Signer
from demur.integrations.vllm_serve.worker import OPEN
from demur.serving.answers import not_answered
from demur.serving.errors import ApiError
from demur.serving.metrics import PromptCounters
from demur.serving.moderations import PATH, chat_of
from demur.serving.settings import Settings
from demur.serving.verdicts import GuardReport


class Counters:
    """What is counted, in the registry that vLLM's /metrics shows."""

    def __init__(self) -> None:
        self.prompts = PromptCounters(REGISTRY)
        self.bypassed = Counter(
            "demur_prefix_cache_bypassed",
            "Prompts that did not read the prefix cache: tokens of its first block are scored",
            registry=REGISTRY,
        )


class Desk:
    """Asks an engine for verdicts.

    Args:
        settings: Of guard.toml.
        engine: Of plain vLLM, armed.
        state: Of its application.
        counters: Of the server.
    """

    def __init__(
        self, settings: Settings, engine: EngineClient, state: State, *, counters: Counters
    ) -> None:
        self.settings = settings
        self._counters = counters
        self._engine = engine
        self._state = state
        self._model_id = model_of(engine.vllm_config)
        self._opened: list[Opened] = [
            open_artifact(source, self._model_id) for source in settings.detectors
        ]

    def count_bypassed(self, number: int) -> None:
        """Count prompts that did not read the prefix cache."""
        self._counters.bypassed.inc(number)

    @property
    def detectors(self) -> list[str]:
        """Their names."""
        return [of.name for of in self._opened]

    async def reports(
        self, ids: Sequence[str], *, endpoint: str | None = None
    ) -> dict[str, GuardReport]:
        """Fetch the reports on prompts; those that are not judged yet are left out.

        Args:
            ids: Of the statements on them.
            endpoint: What they are counted for; None does not count them.
        """
        if not ids:
            return {}
        (found, *_) = await self._engine.collective_rpc("demur_reports", args=(list(ids),))
        reports = {id: GuardReport.model_validate(of) for id, of in found.items()}
        for report in reports.values():
            if endpoint is None:
                break
            self._counters.prompts.count(endpoint, report)
        return reports

    async def score(self, text: str) -> GuardReport:
        """Return what the detectors say of a text, without drawing a reply.

        Raises:
            ApiError: It cannot be judged.
        """
        _, report = await self._scored(text, endpoint=PATH)
        if not report.prompt_scanned:
            raise not_answered("a text to be moderated")
        return report

    async def _scored(
        self, text: str, *, endpoint: str | None = None
    ) -> tuple[list[int], GuardReport]:
        """Return the tokens of a text's prompt, and the report on it.

        Raises:
            ApiError: It cannot be rendered.
        """
        chat = chat_of(text)
        request = ChatCompletionRequest(messages=chat.as_messages())
        rendered = await self._state.online_renderer.render_chat(request)
        if isinstance(rendered, ErrorResponse):
            raise ApiError(400, rendered.error.message, param="input", code="invalid_prompt")
        _, (prompt,) = rendered
        asked = Asked()
        token = ASKED.set(asked)
        try:
            params = SamplingParams(max_tokens=1, detokenize=False, extra_args={ASKED_BY: SCORE})
            name = f"demur-{secrets.token_hex(8)}"
            async for _ in self._engine.generate(prompt, params, name):
                pass
        finally:
            ASKED.reset(token)
        (report,) = (await self.reports(asked.ids, endpoint=endpoint)).values()
        return prompt["prompt_token_ids"], report

    async def open(self) -> None:
        """Replay the fingerprints of the detectors, and let the worker answer.

        Raises:
            DataError: A fingerprint text could not be scored.
            DemurError: What is to answer flagged prompts cannot be loaded.
            ModelMismatchError: A detector does not fit what vLLM runs.
        """
        found = [await self._scored(text) for text in FINGERPRINT_TEXTS]
        prompts: dict[str, Any] = {
            "token_ids": np.concatenate([np.asarray(ids, np.int64) for ids, _ in found]),
            "lengths": np.array([len(ids) for ids, _ in found], np.int64),
        }
        for place, of in enumerate(self._opened):
            scores = [report.verdicts[place].score for _, report in found]
            if None in scores:
                raise DataError(f"detector {of.name!r} could not score a text of its fingerprint")
            require_alike(
                of.artifact,
                {**prompts, "scores": np.array(scores, np.float64)},
                name=self._model_id.name,
            )
        again = await Again.of(self.settings, cast(AsyncLLM, self._engine), self._model_id)
        setattr(self._engine, ANSWERED_BY, again)
        await self._engine.collective_rpc("demur_open", args=(Signer.shared().sealed(OPEN, ()),))

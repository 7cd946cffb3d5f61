"""The guarded worker with a judge of its own: it runs in another process than vLLM's API."""

from typing import Any

from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config

from demur.core.errors import DataError
from demur.engines._stored_columns import stored
from demur.engines.vllm.reader import CONFIG_KEY
from demur.engines.vllm.worker import READOUTS, Forcing
from demur.guard.loading import open_artifact
from demur.integrations.vllm_serve.arming import model_of
from demur.integrations.vllm_serve.judge import Judge
from demur.integrations.vllm_serve.policy import flagged_text
from demur.integrations.vllm_serve.signing import Signer
from demur.modeling.gguf import cache_folder
from demur.serving.settings import load_settings

OPEN = {"open": True}
"""The statement that opens a judge."""


class Judging(Forcing):
    """Adds a judge to a worker, and what the API process calls."""

    rank: int

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and the detectors of guard.toml.

        Raises:
            DemurError: Something that guard.toml names does not exist or does not fit.
        """
        super().load_model(**kwargs)
        self._signer = Signer.shared()
        self.judge = _judge(self.vllm_config, logs=self.rank == 0)
        self.reader.judge = self.judge
        self.reader.opens = self._opened

    def _opened(self, request: Any) -> dict[str, Any]:
        """Return the statement of the API process on a request, if it is one."""
        sealed = (request.sampling_params.extra_args or {}).get(CONFIG_KEY)
        found = self._signer.opened(sealed, request.prompt_token_ids or ())
        return {**found, "request": request.req_id}

    def demur_reports(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return the reports on prompts; see `Judge.take`."""
        return self.judge.take(ids)

    def demur_again(self, id: str) -> bool:
        """Tell whether another request is to answer a prompt; see `Judge.take_again`."""
        return self.judge.take_again(id)

    def demur_open(self, sealed: dict[str, Any]) -> None:
        """Let the judge answer.

        Raises:
            DataError: It is not this server's API process that asks.
        """
        if self._signer.opened(sealed, ()) != OPEN:
            raise DataError("only this server's own self-test opens its judge")
        self.judge.is_open = True


def _judge(config: VllmConfig, *, logs: bool) -> Judge:
    settings, model_id = load_settings(None, {}), model_of(config)
    tokenizer: Any = cached_tokenizer_from_config(config.model_config)
    text = flagged_text(settings, model_id)
    return Judge(
        [open_artifact(of, model_id).calibrated(settings.fpr) for of in settings.detectors],
        stored(config.additional_config[CONFIG_KEY], cache_folder() / READOUTS),
        settings,
        reply_ids=tokenizer(text, add_special_tokens=False)["input_ids"] if text else (),
        logs=logs,
    )

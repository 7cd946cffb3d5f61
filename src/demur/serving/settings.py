"""What configures the server: guard.toml, the environment and options, all checked first.

Options of the command line win over the environment (`DEMUR_SERVE_LIMITS__MAX_WAITING=8`), which
wins over the file. What is unknown is refused, with the nearest name that is known.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from demur.core.errors import ConfigError
from demur.core.interventions import CacheUse
from demur.serving._settings_problems import BETWEEN, PREFIX, Layer, wrong

FILE_VARIABLE = "DEMUR_GUARD"
"""Names guard.toml where no option does."""

END = "end"
"""What becomes of a flagged reply that nobody takes over."""

_SENDABLE = re.compile(r"(?!\*+$)[!-~]+")


def _require_sendable(key: SecretStr) -> SecretStr:
    if not _SENDABLE.fullmatch(key.get_secret_value()):
        raise ValueError("ASCII signs without spaces, and not the asterisks that hide a key")
    return key


def _require_address(url: str) -> str:
    parts = urlsplit(url)
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("an address such as http://127.0.0.1:8001/v1, without keys in it")
    return url.rstrip("/")


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float | None, Field(gt=0, lt=1, examples=[0.01])]
Address = Annotated[str, AfterValidator(_require_address)]
ApiKey = Annotated[SecretStr, Field(strict=False), AfterValidator(_require_sendable)]


class Part(BaseModel):
    """A table of guard.toml."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Limits(Part):
    """How much the server takes on."""

    max_batch: Count = 8
    """Replies that are decoded side by side."""
    max_waiting: Count = 64
    """Requests that may wait beside them; further ones get HTTP 429."""
    retry_after_s: Annotated[int, Field(ge=0)] = 1
    """What Retry-After says then and while the server is not ready, in seconds."""
    max_request_bytes: Count = 1_048_576
    """Bytes of a request's body."""
    max_messages: Count = 256
    """Messages of a chat."""
    max_tokens: Count = 4096
    """Tokens that a request may ask for."""
    max_choices: Count = 8
    """Replies to one request (`n`)."""
    max_moderation_inputs: Count = 64
    """Texts of one request to /v1/moderations."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Until a reply has to be complete, in seconds."""
    shutdown_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    """That replies under way may take when the server is told to stop, in seconds."""


class ReplySettings(Part):
    """A detector that watches replies while they are decoded."""

    detector: Annotated[str | None, Field(min_length=1, examples=["my-reply-detector"])] = None
    """An artifact fitted with --watches reply, or pretrained; none leaves replies unwatched."""
    fpr: Rate = None
    """A false-positive rate that it was calibrated for; none is its default."""
    hold_tokens: Annotated[int, Field(ge=0)] = 1
    """Tokens held back until they are judged; 0 sends tokens at once."""
    on_flagged: Text = END
    """What becomes of a flagged reply: its end, adapter:FOLDER goes on, or fixed_reply:TEXT."""
    cache: CacheUse = "recompute"
    """An adapter reads prompt and reply again (recompute), or goes on from what was read (keep)."""

    @model_validator(mode="after")
    def _somebody_flags(self) -> Self:
        if self.detector is None and self.on_flagged != END:
            raise ValueError("detector beside on_flagged: nothing else flags a reply")
        return self

    @property
    def responder(self) -> str | None:
        """Who takes over a flagged reply, as a responder's line; None ends it."""
        return None if self.on_flagged == END else self.on_flagged


class VllmSettings(Part):
    """What vLLM is told, with engine = "vllm"."""

    max_model_len: Annotated[int | None, Field(ge=16, examples=[4096])] = None
    """Tokens of prompt and reply together; none is the model's own context."""
    enforce_eager: bool = False
    """Compile nothing: it starts faster and runs slower."""
    kv_cache_gib: Annotated[float | None, Field(gt=0, examples=[8.0])] = None
    """Memory for keys and values, in GiB; none is vLLM's own share of a GPU, and 4 without one."""
    clients_may_observe: bool = False
    """Under vllm serve: a request's vllm_xargs may ask to be answered as if unguarded."""
    raw_prompts: Literal["score", "refuse"] = "score"
    """Under vllm serve: prompts that are no chats get a score all the same, or HTTP 400."""


class UpstreamSettings(Part):
    """Another server that answers what is not flagged; the local model only judges."""

    url: Annotated[Address | None, Field(examples=["http://127.0.0.1:8001/v1"])] = None
    """An OpenAI-compatible server's address up to /v1; none lets the local model answer."""
    api_key: Annotated[ApiKey | None, Field(examples=["sk-key"])] = None
    """The upstream's key; none passes the clients' own on, if this server asks for none itself."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest silence of the upstream, in seconds."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Until a connection to it has to stand, in seconds."""
    on_unscanned: Literal["refuse", "pass"] = "refuse"
    """What requests get with images and other parts that no detector reads: HTTP 400, or a pass."""
    speculative: bool = False
    """Send a request before the verdict, which is then waited for; flagged prompts are sent too."""
    report_in_stream: bool = False
    """Add a chunk with the field demur and without choices before the end of streams."""


class AuditSettings(Part):
    """The audit log."""

    path: Annotated[Path | None, Field(strict=False, examples=["audit.jsonl"])] = None
    """The file to write; none writes no log."""
    on_failure: Literal["refuse", "go_on"] = "refuse"
    """What requests get while it cannot be written: HTTP 503 (refuse), or answers (go_on)."""
    keep_text: bool = False
    """Also write prompts and replies."""
    retention_days: Annotated[float | None, Field(gt=0, le=36_500, examples=[30])] = None
    """Days until texts are removed; needed with keep_text."""
    fsync: bool = True
    """Wait for the disk after every line, so that a power failure loses none."""

    @model_validator(mode="after")
    def _texts_have_an_end(self) -> Self:
        if self.keep_text and self.retention_days is None:
            raise ValueError("retention_days beside keep_text: say how long texts are kept")
        return self


class Settings(BaseSettings):
    """The whole of guard.toml."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        env_prefix=PREFIX,
        env_nested_delimiter=BETWEEN,
    )

    model: Text = "embedded"
    """embedded, a folder, a .gguf file, or a name on the model hub."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the model: transformers, or vllm, which takes linear detectors only."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights: auto, float32, bfloat16 or float16."""
    model_name: Annotated[str | None, Field(min_length=1, examples=["my-model"])] = None
    """What clients call the model; none is its own name."""
    detectors: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = ("pretrained",)
    """Artifact folders, names of packaged ones, or pretrained; what any flags is flagged."""
    fpr: Rate = None
    """A false-positive rate that they were calibrated for; none is each one's default."""
    responder: Text = "pretrained"
    """Who answers flagged prompts; pretrained is the model's packaged adapter, or fixed_reply."""
    on_flagged: Literal["respond", "refuse", "block"] = "respond"
    """What flagged prompts get: the responder (respond), a refusal (refuse), HTTP 400 (block)."""
    refusal: Text = "I can't help with this request."
    """The text of a refusal."""
    on_error: Literal["refuse", "pass_unscored"] = "refuse"
    """What prompts get that cannot be scored: HTTP 503 (refuse), or the model (pass_unscored)."""
    observe: bool = False
    """Answer as if unguarded, and say what would have happened."""
    host: Text = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    api_keys: Annotated[tuple[ApiKey, ...], Field(strict=False)] = ()
    """Keys, one of which a request has to bring; without any, all requests are served."""
    default_max_tokens: Count = 512
    """Tokens of a reply, where a request says nothing."""
    limits: Limits = Limits()
    """How much the server takes on."""
    vllm: VllmSettings = VllmSettings()
    """What vLLM is told."""
    reply: ReplySettings = ReplySettings()
    """A detector that watches replies."""
    upstream: UpstreamSettings = UpstreamSettings()
    """Another server that answers what is not flagged; the local model only judges."""
    audit: AuditSettings = AuditSettings()
    """The audit log."""

    @field_validator("upstream")
    @classmethod
    def _replies_are_watched_or_not(
        cls, upstream: UpstreamSettings, info: ValidationInfo
    ) -> UpstreamSettings:
        reply = info.data.get("reply")
        if upstream.url is not None and reply is not None and reply.detector is not None:
            raise ValueError("no reply.detector beside it: an upstream's replies cannot be watched")
        return upstream

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given only: `load_settings` reads the other sources, and checks each."""
        return (init_settings,)


class _Variables(EnvSettingsSource):
    """The environment's values; what is no JSON, where JSON is due, is left for the checks."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.env_vars = {name.lower(): value for name, value in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Return what a text says if it is JSON, else the text."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def load_settings(
    path: Path | None,
    overrides: Mapping[str, object],
    *,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Return the settings in force.

    Args:
        path: guard.toml; None takes the file that DEMUR_GUARD names, if it names one.
        overrides: Fields that win over file and environment, nested as in the file.
        environment: Variables by name.

    Raises:
        ConfigError: The file cannot be read, keys are unknown, or values are wrong: a line each.
    """
    path = path or named_file(environment)
    file = Layer("" if path is None else f"{path}: ", {} if path is None else _read(path))
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    variables = Layer("", _Variables(ours)(), is_environment=True)
    options = Layer("the options: ", overrides)
    names = [tuple(name.removeprefix(PREFIX).lower().split(BETWEEN)) for name in ours]
    problems = [
        *file.unknown(Settings),
        *variables.unknown(Settings, names),
        *options.unknown(Settings),
    ]
    layers = (file, variables, options)
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merged(values, layer.values)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += wrong(error, layers, Settings)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def named_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file that DEMUR_GUARD names, if it names one."""
    named = environment.get(FILE_VARIABLE)
    return Path(named) if named else None


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two layers in one; the second wins."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    """Return what a file says.

    Raises:
        ConfigError: It cannot be read; the message holds the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is no UTF-8: save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        place = f"at line {len(text.splitlines())}, the end"
        problem = str(error).replace("at end of document", place)
        raise ConfigError(f"{path} is no TOML: {problem}") from error

"""The body of `POST /v1/chat/completions`: what the local model can do; the rest is refused.

Names, types and defaults are OpenAI's. A field that the engine cannot do is refused unless it asks
for what happens anyhow, such as a penalty of 0.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from demur.core.types import Chat, Sampling
from demur.serving.errors import invalid, unsupported

ROLES = {"developer": "system"}
"""Roles that the model's template knows by another name."""
WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that the engine cannot do, with the values that ask for nothing."""


class Wire(BaseModel):
    """What all parts of requests have in common: they may be kept, and are not changed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class TextPart(Wire):
    """A part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(Wire):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    def text(self, place: str) -> str:
        """Return the content as one text.

        Raises:
            ApiError: It holds something else than text.
        """
        for field in sorted({"tool_calls", "function_call", "audio"} & set(self.model_extra or {})):
            if (self.model_extra or {})[field]:
                raise unsupported(f"{place}.{field}", "the model's chat template has no such turns")
        if self.content is None:
            raise invalid(f"{place}.content", "expected a text")
        if isinstance(self.content, str):
            return self.content
        for number, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                raise unsupported(
                    f"{place}.content.{number}", f"the model reads texts, not {part.type!r}"
                )
        return "".join(part.text or "" for part in self.content)


class StreamOptions(Wire):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ModerationPolicyPart(Wire):
    """What becomes of a flagged input or output."""

    mode: Literal["score", "block"] = "score"


class ModerationPolicy(Wire):
    """What becomes of a flagged input and output."""

    input: ModerationPolicyPart = ModerationPolicyPart()
    output: ModerationPolicyPart = ModerationPolicyPart()


class InlineModeration(Wire):
    """Asks for the verdict in the reply."""

    model: str = ""
    policy: ModerationPolicy = ModerationPolicy()


class ChatRequest(Wire):
    """A chat to be answered."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    moderation: InlineModeration | None = None
    metadata: dict[str, str] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _refuse_what_cannot_be_done(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name not in WITHOUT_EFFECT:
                raise unsupported(name, "this server does not know the field")
            if value is not None and value not in WITHOUT_EFFECT[name]:
                allowed = " or ".join(map(repr, WITHOUT_EFFECT[name]))
                raise unsupported(
                    name, f"the local engine cannot do this; leave it out, or {allowed}"
                )
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only allowed with stream: true")
        return self

    @property
    def chat(self) -> Chat:
        """The turns as the guard takes them.

        Raises:
            ApiError: A turn holds something else than text.
            DataError: There is no user turn with text.
        """
        turns: list[dict[str, Any]] = [
            {
                "role": ROLES.get(message.role, message.role),
                "content": message.text(f"messages.{number}"),
            }
            for number, message in enumerate(self.messages)
        ]
        return Chat.from_messages(turns)

    def sampling(self, *, default_max_tokens: int, max_tokens: int, seed: int) -> Sampling:
        """Return how replies are drawn.

        Args:
            default_max_tokens: Of a reply, where the request says nothing.
            max_tokens: Most that a request may ask for.
            seed: Where the request says nothing.

        Raises:
            ApiError: The request asks for more tokens, or for an empty stop.
        """
        asked = self.max_completion_tokens or self.max_tokens
        if asked is not None and asked > max_tokens:
            name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
            raise invalid(name, f"more than the {max_tokens} that this server allows")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not all(stop):
            raise invalid("stop", "an empty text would end every reply at once; leave it out")
        return Sampling(
            max_tokens=asked or min(default_max_tokens, max_tokens),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stop=tuple(stop),
        )

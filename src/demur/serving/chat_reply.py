"""The bodies of chat completions, whole and in chunks, as OpenAI's clients parse them."""

from typing import Literal

from pydantic import BaseModel

from demur.serving.verdicts import GuardReport, InlineModerations

FinishReason = Literal["stop", "length", "content_filter"]


class TopLogprob(BaseModel):
    """Another token that might have been drawn; this server names none."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(BaseModel):
    """A token with its log-probability under the model, before temperature and top_p."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


class ChoiceLogprobs(BaseModel):
    """Of the tokens of a choice, or of a chunk."""

    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class AssistantMessage(BaseModel):
    """What the model, or a responder, answers."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class Choice(BaseModel):
    """One of the `n` replies."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class Usage(BaseModel):
    """Tokens of the prompt, and of all replies."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> "Usage":
        """Return the counts with their sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    moderation: InlineModerations | None = None
    demur: GuardReport


class Delta(BaseModel):
    """What a chunk adds to a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None


class ChunkChoice(BaseModel):
    """A choice of a chunk."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(BaseModel):
    """A piece of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    moderation: InlineModerations | None = None
    demur: GuardReport | None = None
    """In the last chunk of a choice."""

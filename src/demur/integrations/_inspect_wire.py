"""What inspect_ai asks, as the body of a request; what the server answers, as a ModelOutput."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelOutput,
    ResponseSchema,
    StopCategory,
    StopDetails,
    messages_to_openai,
    model_output_from_openai,
)
from inspect_ai.tool import ToolChoice, ToolFunction, ToolInfo

BLOCKED = "content_filter"
"""The code of HTTP 400 for a flagged prompt, and the finish_reason of a reply that was cut."""
TOO_LONG = "context_length_exceeded"
PRESENT = 0.5
"""Calibrated probability from which a category is named."""

_FIELDS = {
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "logprobs": "logprobs",
    "max_tokens": "max_tokens",
    "num_choices": "n",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop_seqs": "stop",
    "temperature": "temperature",
    "top_logprobs": "top_logprobs",
    "top_p": "top_p",
}
"""Fields of GenerateConfig, and what the server calls them; it refuses those that it cannot do."""


async def request_of(
    model: str,
    input: Sequence[ChatMessage],
    *,
    tools: Sequence[ToolInfo],
    tool_choice: ToolChoice,
    config: GenerateConfig,
) -> dict[str, Any]:
    """Return the body of a request to `/v1/chat/completions`.

    Args:
        model: What the server calls its model.
        input: The chat.
        tools: What the model may call; only an upstream can.
        tool_choice: Which of them it must call.
        config: How the reply is drawn.
    """
    asked = {name: getattr(config, field) for field, name in _FIELDS.items()}
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in await messages_to_openai(list(input))],
        **{name: value for name, value in asked.items() if value is not None},
    }
    if config.response_schema is not None:
        body["response_format"] = _response_format(config.response_schema)
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
        body["tool_choice"] = _tool_choice(tool_choice)
    return body | (config.extra_body or {})


def _response_format(schema: ResponseSchema) -> dict[str, Any]:
    given = schema.model_dump(exclude_none=True)
    return {"type": "json_schema", "json_schema": {**given, "schema": given.pop("json_schema")}}


def _tool(tool: ToolInfo) -> dict[str, Any]:
    parameters = tool.parameters.model_dump(exclude_none=True)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> object:
    if isinstance(choice, ToolFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice == "any" else choice


async def output_of(body: Mapping[str, Any]) -> ModelOutput:
    """Return a whole reply; the guard's report is its metadata, and its details if it was cut."""
    output = await model_output_from_openai(dict(body))
    found = body.get("demur")
    output.metadata = None if found is None else {"demur": found}
    for number, choice in enumerate(output.choices):
        if choice.stop_reason == BLOCKED and found is not None:
            choice.stop_details = details_of(found, reply=number)
    return output


def refused_output(model: str, body: Mapping[str, Any]) -> ModelOutput | None:
    """Return what HTTP 400 means as an output; None if it means that the request is wrong.

    Args:
        model: What was asked.
        body: Of the answer.
    """
    error = body.get("error") or {}
    code, message = error.get("code"), str(error.get("message"))
    if code == TOO_LONG:
        return ModelOutput.from_content(model, message, stop_reason="model_length", error=message)
    if code != BLOCKED:
        return None
    found = body.get("demur")
    output = ModelOutput.from_content(
        model,
        message,
        stop_reason=BLOCKED,
        error=message,
        stop_details=StopDetails(type=BLOCKED, explanation=message)
        if found is None
        else details_of(found),
    )
    output.metadata = None if found is None else {"demur": found}
    return output


def details_of(found: Mapping[str, Any], *, reply: int | None = None) -> StopDetails:
    """Return why the guard stepped in.

    Args:
        found: Its report, the field `demur` of answers.
        reply: Place of the reply that was cut; None if there is none.
    """
    flagged = [verdict for verdict in _verdicts(found, reply) if verdict["flagged"]]
    present: dict[str, float] = {}
    for verdict in flagged:
        for category, p in (verdict["categories"] or {}).items():
            if p is not None and p >= PRESENT:
                present[category] = max(p, present.get(category, 0.0))
    ranked = sorted(present, key=lambda category: -present[category])
    return StopDetails(
        type=BLOCKED,
        category=ranked[0] if ranked else None,
        explanation="; ".join(_sentence(verdict) for verdict in flagged) or None,
        categories=[StopCategory(category=key, level=f"{present[key]:.2f}") for key in ranked],
    )


def _verdicts(found: Mapping[str, Any], reply: int | None) -> Iterator[Mapping[str, Any]]:
    """Yield the verdicts on the prompt, then the one on a reply."""
    yield from found["verdicts"]
    for of in found["replies"]:
        if of["index"] == reply and of["verdict"] is not None:
            yield of["verdict"]


def _sentence(verdict: Mapping[str, Any]) -> str:
    name = f"{verdict['detector']}@{verdict['version']}"
    if verdict["score"] is None:
        return f"{name} could not score it"
    return f"flagged by {name}: score {verdict['score']:.2f}, threshold {verdict['threshold']:.2f}"

"""The providers for inspect_ai: what they ask, what they read, and which errors they try again."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from demur.core.errors import ConfigError
from demur.engines.fake import FakeEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from tests.guards import REFUSAL, SAFE, UNSAFE, judge, marker_guard
from tests.servers import app_of, running

pytestmark = [
    pytest.mark.recipes,
    pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning"),  # inspect_ai's
]

models = pytest.importorskip("inspect_ai.model", reason="make test-recipes installs it")
tools = pytest.importorskip("inspect_ai.tool")
server_api = pytest.importorskip("demur.integrations._inspect_server")
wire = pytest.importorskip("demur.integrations._inspect_wire")

VERDICT = {"detector": "d", "version": "1", "score": 2.0, "threshold": 1.0, "flagged": True}


def asked(name: str, prompt: str, **given: Any) -> Any:
    """Return what a provider answers to a prompt."""

    async def ask() -> Any:
        async with models.get_model(name, memoize=False, **given) as model:
            return await model.generate(prompt, config=models.GenerateConfig(temperature=0))

    return asyncio.run(ask())


def unscored() -> Guard:
    """Return a guard whose detector fails."""
    return Guard(
        FakeEngine(),
        [judge("broken", None)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )


@pytest.mark.parametrize(("prompt", "said"), [(SAFE, SAFE), (UNSAFE, REFUSAL)])
def test_a_guard_in_this_process_answers_as_its_server_does(prompt: str, said: str) -> None:
    guard = marker_guard(FakeEngine())
    with running(app_of(guard)) as server:
        there = asked("demur/fake", prompt, base_url=f"{server.url}/v1")
    here = asked("demur-local/fake", prompt, guard=guard)
    assert there.completion == here.completion == said
    assert there.metadata == here.metadata


def test_a_prompt_that_could_not_be_scored_is_an_error_and_not_tried_again() -> None:
    with running(app_of(unscored())) as server:
        with pytest.raises(RuntimeError, match="not_answered"):
            asked("demur/fake", SAFE, base_url=f"{server.url}/v1")
        metrics = server.get("/metrics").text
    assert 'code="not_answered",endpoint="/v1/chat/completions"} 1.0' in metrics


def test_a_wrong_key_is_refused_as_such() -> None:
    app = app_of(marker_guard(FakeEngine()), api_keys=("right",))
    with running(app) as server:
        url = f"{server.url}/v1"
        with pytest.raises(server_api.AnswerError) as raised:
            asked("demur/fake", SAFE, base_url=url, api_key="wrong")
        assert asked("demur/fake", SAFE, base_url=url, api_key="right").completion == SAFE
    assert raised.value.status == 401
    assert server_api.ServerAPI("fake").is_auth_failure(raised.value)


@pytest.mark.parametrize(
    ("status", "code", "is_tried_again"),
    [
        (429, "overloaded", True),
        (503, "not_ready", True),
        (504, "timeout", True),
        (503, "not_answered", False),
        (503, "not_recorded", False),
        (400, "unsupported_parameter", False),
    ],
)
def test_what_may_be_gone_in_a_while_is_tried_again(
    status: int, code: str, is_tried_again: bool
) -> None:
    api = server_api.ServerAPI("fake")
    error = server_api.AnswerError(status, code, "for people")
    assert bool(api.should_retry(error)) is is_tried_again


def test_where_there_is_no_server_the_error_says_how_to_start_one() -> None:
    with pytest.raises(ConfigError, match="demur serve"):
        asked("demur/fake", SAFE, base_url="http://127.0.0.1:1/v1")


def test_a_prompt_that_is_too_long_stops_by_the_models_length() -> None:
    with running(app_of(marker_guard(FakeEngine(max_tokens=32)))) as server:
        output = asked("demur/fake", "word " * 64, base_url=f"{server.url}/v1")
    assert output.stop_reason == "model_length"


def test_tools_schema_and_sampling_are_asked_for_by_the_names_of_openai() -> None:
    tool = tools.ToolInfo(name="look", description="Look it up.")
    schema = models.ResponseSchema(name="answer", json_schema={"type": "object"})
    body = asyncio.run(
        wire.request_of(
            "fake",
            [models.ChatMessageUser(content="Hi")],
            tools=[tool],
            tool_choice=tools.ToolFunction(name="look"),
            config=models.GenerateConfig(max_tokens=7, stop_seqs=["."], response_schema=schema),
        )
    )
    assert (body["model"], body["max_tokens"], body["stop"]) == ("fake", 7, ["."])
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["tools"][0]["function"]["name"] == "look"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert body["response_format"]["json_schema"]["name"] == "answer"
    assert body["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert "temperature" not in body


def report(*, replies: list[Mapping[str, Any]], **categories: float | None) -> dict[str, Any]:
    """Return a server's report on a flagged prompt."""
    return {"verdicts": [{**VERDICT, "categories": categories}], "replies": replies}


def test_the_likeliest_category_comes_first_and_those_under_even_odds_not_at_all() -> None:
    details = wire.details_of(report(replies=[], violence=0.6, fraud=0.9, other=0.2, unknown=None))
    assert details.category == "fraud"
    assert [(of.category, of.level) for of in details.categories] == [
        ("fraud", "0.90"),
        ("violence", "0.60"),
    ]
    assert details.explanation == "flagged by d@1: score 2.00, threshold 1.00"


def test_of_several_replies_each_has_its_own_reason() -> None:
    stopped = {"index": 1, "verdict": {**VERDICT, "detector": "watcher", "categories": None}}
    found = report(replies=[{"index": 0, "verdict": None}, stopped])
    assert "watcher" not in wire.details_of(found, reply=0).explanation
    assert "watcher" in wire.details_of(found, reply=1).explanation

"""Plain `vllm serve` whose flagged prompts are answered by another request, in float32."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from demur.core.types import Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from tests.servers import events_of, said
from tests.vllm_engines import needs_vllm
from tests.vllm_servers import (
    OTHER_APIS,
    REFUSAL,
    SAFE,
    SERVED,
    asked_elsewhere,
    flagged_text,
    reply_of,
    said_of,
    unsafe_texts,
    vllm_serving,
)

pytestmark = needs_vllm
SYSTEM = {"role": "system", "content": "Answer in one sentence."}


@dataclass(frozen=True)
class Served:
    """A server, and the same guard on transformers."""

    http: httpx.Client
    guard: Guard
    route: str
    flagged: str
    """A prompt that is flagged."""

    def expected(self, text: str, *others: dict[str, str], max_tokens: int = 16) -> str:
        """Return what transformers says."""
        chat = [*others, {"role": "user", "content": text}]
        return self.guard.reply(chat, Sampling(max_tokens=max_tokens)).text


def tokens_of(served: Served, text: str) -> list[int]:
    """Return the tokens of a chat."""
    body = {"model": SERVED, "messages": [{"role": "user", "content": text}]}
    found: list[int] = served.http.post("/tokenize", json=body).json()["tokens"]
    return found


@pytest.fixture(scope="module", params=["safety_prompt", "adapter:pretrained@0.75"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder, line = tmp_path_factory.mktemp("again"), request.param
    (folder / "guard.toml").write_text(f'responder = "{line}"\n')
    guard = Guard.load(TransformersEngine.load("embedded", dtype="float32"), responder=line)
    with vllm_serving(folder, VLLM_PLUGINS="demur", DEMUR_GUARD=str(folder / "guard.toml")) as (
        http,
        _,
    ):
        yield Served(http, guard, line.partition(":")[0], flagged_text(http))


def test_a_flagged_prompt_is_answered_as_transformers_does(served: Served) -> None:
    expected = served.expected(served.flagged)
    whole = said_of(served.http, served.flagged)
    streamed = said_of(served.http, served.flagged, stream=True)
    assert reply_of(whole) == expected
    assert said(events_of(streamed.text)) == expected
    for answer in (whole, streamed):
        assert answer.headers["x-demur-route"] == served.route
        assert answer.headers["x-demur-flagged"] == "true"


def test_a_client_sees_the_prompt_that_it_gave(served: Served) -> None:
    tokens = tokens_of(served, served.flagged)
    answer = said_of(served.http, served.flagged, return_token_ids=True).json()
    assert answer["prompt_token_ids"] == tokens
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["token_ids"]) == 16


def test_requests_side_by_side_keep_their_answers(served: Served) -> None:
    texts = [*SAFE, *unsafe_texts(8)]
    expected = [served.expected(text) for text in texts]
    flags = [served.guard.check(text)[0].flagged for text in texts]
    assert {True, False} == set(flags)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(partial(said_of, served.http), 2 * texts))
    assert [reply_of(answer) for answer in answers] == 2 * expected
    assert [answer.headers["x-demur-flagged"] == "true" for answer in answers] == 2 * flags


def test_a_system_message_is_kept(served: Served) -> None:
    messages = [SYSTEM, {"role": "user", "content": served.flagged}]
    answer = said_of(served.http, served.flagged, messages=messages)
    assert reply_of(answer) == served.expected(served.flagged, SYSTEM)
    assert answer.headers["x-demur-route"] == served.route


@pytest.mark.parametrize(
    "given",
    [
        {"min_tokens": 4},
        {"ignore_eos": True},
        {"response_format": {"type": "text"}},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2, "temperature": 1.0, "top_k": 1},
        {"vllm_xargs": {"demur": "answer", "policy": "answer"}},
        {"max_tokens": 400},
        {"max_completion_tokens": None, "max_tokens": None},
    ],
)
def test_nothing_that_a_request_says_gives_it_the_untouched_reply(
    served: Served, given: dict[str, Any]
) -> None:
    answer = said_of(served.http, served.flagged, **given)
    answer.raise_for_status()
    first = served.expected(served.flagged)
    replies = [choice["message"]["content"] for choice in answer.json()["choices"]]
    assert len(replies) == given.get("n", 1)
    assert all(reply.startswith(first) for reply in replies)
    assert answer.headers["x-demur-route"] == served.route


def test_a_reply_may_have_to_obey_a_grammar(served: Served) -> None:
    answer = said_of(
        served.http, served.flagged, structured_outputs={"choice": ["no", "never"]}
    ).raise_for_status()
    assert reply_of(answer) in ("no", "never")
    assert answer.headers["x-demur-route"] == served.route


@pytest.mark.parametrize("path", OTHER_APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_other_apis_are_answered_too(served: Served, path: str, stream: bool) -> None:
    answer, texts = asked_elsewhere(served.http, path, served.flagged, stream=stream)
    assert answer.headers["x-demur-route"] == served.route
    assert served.expected(served.flagged) in texts


def test_a_chat_spelled_out_as_tokens_is_answered_as_far_as_that_goes(served: Served) -> None:
    tokens = tokens_of(served, served.flagged)
    raw = {"model": SERVED, "prompt": tokens, "max_tokens": 16, "temperature": 0}
    answer = served.http.post("/v1/completions", json=raw).raise_for_status()
    is_adapter = served.route == "adapter"
    expected = served.expected(served.flagged) if is_adapter else REFUSAL
    assert answer.json()["choices"][0]["text"] == expected
    assert answer.headers["x-demur-route"] == ("adapter" if is_adapter else "fixed_reply")


def test_a_chat_that_leaves_no_room_for_the_safety_prompt_is_an_error(served: Served) -> None:
    if served.route == "adapter":
        pytest.skip("an adapter needs no room")
    texts = [" ".join([served.flagged] * number) for number in range(20, 40)]
    long = [text for text in texts if len(tokens_of(served, text)) < 500][-1]
    assert served.guard.check(long)[0].flagged
    answer = said_of(served.http, long, max_tokens=1)
    assert answer.status_code == 400
    assert "with its safety prompt" in answer.json()["error"]["message"]

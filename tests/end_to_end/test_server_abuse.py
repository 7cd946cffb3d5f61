"""Requests that nobody should send: each gets a stated answer, which tells nothing of the inside.

No answer is a 5xx but a stated 503, every error has OpenAI's form, no body holds a traceback or a
path, and no flagged text comes back.
"""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from demur.engines.fake import FakeEngine
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.serving.chat_request import WITHOUT_EFFECT, ChatRequest
from tests.guards import SAFE, UNSAFE, judge, marker_detector, marker_guard
from tests.servers import CHAT, Running, app_of, running

MODERATIONS = "/v1/moderations"
JSON = {"content-type": "application/json"}
STATED = {"not_ready", "not_answered", "not_recorded"}
"""Codes of a 503 that the documentation names."""
MARKER = "MARKER"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(app_of(marker_guard(FakeEngine()))) as found:
        yield found


def examples(num: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the same examples each time, with no file of those that failed."""
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = settings(
        max_examples=num,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return decorate


def require_stated(status: int, text: str, *, is_marker_flagged: bool = True) -> None:
    """Check what holds for every answer of the server."""
    for inside in ("Traceback", 'File "', "site-packages", "/demur/", "Error:"):
        assert inside not in text
    if status == 200 and is_marker_flagged:
        assert MARKER not in text
    if status < 400:
        return
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert status < 500 or (status == 503 and error["code"] in STATED)


def send(server: Running, path: str, content: bytes) -> httpx.Response:
    response = server.http.post(path, content=content, headers=JSON)
    require_stated(response.status_code, response.text)
    return response


def fuzz(server: Running, *, num_requests: int) -> None:
    """Send requests, half of them valid, that are made of the server's own OpenAPI description."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    described = list(schema.get_all_operations())
    operations = [found.ok() for found in described if isinstance(found, Ok)]
    assert len(operations) == len(described) > 5
    writes = [(of, mode) for of in operations if of.method == "post" for mode in modes]
    reads = [(of, GenerationMode.POSITIVE) for of in operations if of.method == "get"]
    with requests.Session() as session:
        for operation, mode in (*writes, *reads):

            @examples(num_requests // len(writes) if operation.method == "post" else 1)
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "fake"  # there is no other
                response = case.call(session=session, timeout=30)
                require_stated(response.status_code, response.text)
                case.validate_response(response, checks=CHECKS)

            check()


def test_requests_made_of_the_interfaces_description(server: Running) -> None:
    fuzz(server, num_requests=200)


@pytest.mark.slow
def test_ten_thousand_requests_made_of_the_interfaces_description(server: Running) -> None:
    fuzz(server, num_requests=10_000)


texts = st.text(st.characters(exclude_categories=())) | st.sampled_from([SAFE, UNSAFE, "", " "])
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1e308, 2**63])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
messages = st.fixed_dictionaries(
    {"role": roles, "content": texts | st.lists(parts, max_size=3)}, optional={"name": texts}
)
asked = st.sampled_from([SAFE, UNSAFE]).map(lambda text: [{"role": "user", "content": text}])
plausible = st.fixed_dictionaries(
    {
        "model": st.just("fake"),
        "messages": asked
        | st.builds(lambda before, last: [*before, *last], st.lists(messages, max_size=3), asked),
    },
    optional={
        "n": st.integers(1, 3),
        "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=4),
        "max_tokens": st.integers(1, 20),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logprobs": st.booleans(),
        "stream": st.booleans(),
        "moderation": st.just({"model": "demur"}),
        "metadata": st.dictionaries(st.text(), st.text(), max_size=3),
        "user": st.text(max_size=20),
        "logit_bias": st.just({}),
        "tools": st.just([]),
    },
)
fields = st.sampled_from(sorted({*ChatRequest.model_fields, *WITHOUT_EFFECT}))
odd = st.builds(lambda body, name, value: {**body, name: value}, plausible, fields | texts, values)
chats = plausible | odd
inputs = texts | st.lists(texts, max_size=4) | st.lists(parts, max_size=3) | values
judged = st.fixed_dictionaries({"input": inputs}, optional={"model": texts | values})


@examples(100)
@given(body=chats | values)
def test_chats_of_any_form(server: Running, body: object) -> None:
    send(server, CHAT, json.dumps(body).encode())


@examples(60)
@given(body=judged | values)
def test_moderations_of_any_form(server: Running, body: object) -> None:
    send(server, MODERATIONS, json.dumps(body).encode())


@examples(40)
@given(content=st.binary(max_size=200))
def test_bodies_of_any_bytes(server: Running, content: bytes) -> None:
    assert send(server, CHAT, content).status_code == 400


def chat_with(field: str) -> bytes:
    return f'{{"model":"fake","messages":[{{"role":"user","content":"Hi"}}],{field}}}'.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b'{"model":"\xff"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        chat_with('"tools":' + "[" * 900 + "]" * 900),
        chat_with('"n":' + "9" * 5000),
        chat_with('"seed":' + "9" * 4000),
        chat_with('"seed":1e400'),
        chat_with('"temperature":NaN'),
        chat_with('"top_p":Infinity'),
        chat_with('"presence_penalty":NaN'),
        chat_with('"max_tokens":"12"'),
        chat_with('"n":true'),
        chat_with('"user":"\\ud800"'),
        chat_with('"metadata":{"\\ud800":1}'),
        chat_with('"\\ud800":1'),
        chat_with('"messages":[{"role":"user","content":"\\udfff"}]'),
    ],
)
def test_bodies_that_no_client_means_are_refused(server: Running, content: bytes) -> None:
    response = send(server, CHAT, content)
    assert response.status_code == 400
    assert len(response.text) < 500


def test_of_two_fields_of_one_name_the_last_is_judged_and_answered(server: Running) -> None:
    def answer(*contents: str) -> Any:
        twice = ",".join(
            f'"messages":[{{"role":"user","content":"{content}"}}]' for content in contents
        )
        return send(server, CHAT, f'{{"model":"fake","temperature":0,{twice}}}'.encode()).json()

    assert answer(UNSAFE, SAFE)["choices"][0]["message"]["content"] == SAFE
    assert answer(SAFE, UNSAFE)["demur"]["flagged"] is True


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(server: Running, kind: str) -> None:
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": SAFE}]})
    response = server.http.post(CHAT, content=body.encode(), headers={"content-type": kind})
    require_stated(response.status_code, response.text)
    assert response.status_code == 400


@pytest.mark.parametrize("name", ["../../etc/passwd", "fake/../..", "%2e%2e%2f", "file:///", "\0"])
def test_names_are_never_paths(server: Running, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": SAFE}], "user": name}
    assert send(server, CHAT, json.dumps(body).encode()).json()["error"]["code"] == (
        "model_not_found"
    )
    as_user = send(server, CHAT, json.dumps({**body, "model": "fake"}).encode())
    assert as_user.status_code == 200
    assert "root:" not in as_user.text


@pytest.mark.parametrize(
    "path", ["/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/", "/v1/%00", "//"]
)
def test_paths_that_are_none_are_not_found(server: Running, path: str) -> None:
    response = server.http.get(path)
    require_stated(response.status_code, response.text)
    assert response.status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_other_methods_are_refused(server: Running, method: str) -> None:
    response = server.http.request(method, CHAT)
    require_stated(response.status_code, response.text)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_head_request_gets_no_body(server: Running) -> None:
    response = server.http.head(CHAT)
    assert (response.status_code, response.content) == (405, b"")


def test_names_of_detectors_cannot_add_headers() -> None:
    engine = FakeEngine()
    evil = "a\r\nx-evil: 1\r\n\r\nb\u2028\u00e9"
    guard = Guard(
        engine,
        [marker_detector(engine), judge(evil, 0.0)],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    with running(app_of(guard, model_name=evil)) as server:
        body = {"model": evil, "messages": [{"role": "user", "content": SAFE}]}
        whole = send(server, CHAT, json.dumps(body).encode())
        stream = send(server, CHAT, json.dumps({**body, "stream": True}).encode())
        metrics = server.get("/metrics").text
    for response in (whole, stream):
        assert "x-evil" not in response.headers
        assert response.headers["x-demur-detectors"].endswith("a__x-evil: 1____b__@test")
    assert whole.json()["model"] == evil
    assert "\nx-evil" not in metrics + stream.text


def connected(server: Running) -> socket.socket:
    address = server.server.servers[0].sockets[0].getsockname()
    return socket.create_connection(address, timeout=20)


def answer_of(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /livez HTTP/1.1\r\nHost: demur\r\nx-long: " + b"a" * 1_000_000,
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"no HTTP at all\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: demur\r\nx-evil: a\rb\x00\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: demur\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_server_lives(server: Running, sent: bytes) -> None:
    with connected(server) as connection:
        try:
            connection.sendall(sent)
            answer = answer_of(connection)
        except ConnectionError:  # closed before all was read
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert b"Traceback" not in answer
    assert server.get("/livez").text == "alive"


def test_a_body_that_does_not_come_is_given_up_and_holds_up_nobody() -> None:
    guard = marker_guard(FakeEngine())
    app = app_of(guard, limits={"request_timeout_s": 1.0})
    with running(app) as server, connected(server) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: demur\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"model":'.encode())
        body = {"model": "fake", "messages": [{"role": "user", "content": SAFE}]}
        assert server.post(CHAT, body).status_code == 200
        status, _, rest = answer_of(connection).partition(b"\r\n")
    assert status == b"HTTP/1.1 408 Request Timeout"
    assert json.loads(rest.split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"


@pytest.mark.slow
def test_the_embedded_model_takes_chats_of_any_form() -> None:
    guard = Guard.load(TransformersEngine.load("embedded"))
    limits = {"max_tokens": 4}
    with running(app_of(guard, model_name="fake", limits=limits, default_max_tokens=4)) as server:

        @examples(200)
        @given(body=chats)
        def check(body: object) -> None:
            response = server.http.post(CHAT, content=json.dumps(body).encode(), headers=JSON)
            require_stated(response.status_code, response.text, is_marker_flagged=False)
            assert response.status_code != 503

        check()

"""Every text of a request is judged, whatever turn, part or field it stands in."""

import json
from typing import Any

import pytest

from demur.serving.errors import ApiError
from demur.serving.judged_chat import judged_chat
from demur.serving.upstream_request import MAX_DEPTH, UpstreamRequest
from tests.tool_chats import ASKS, CALLS, PICTURE, RESULT


def turns(*messages: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in judged_chat(messages).chat.messages]


def read(body: object) -> UpstreamRequest:
    return UpstreamRequest.read(body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_plain_chat_is_judged_as_it_is() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": [{"type": "text", "text": "How are you?"}]},
    ]
    judged = judged_chat(messages)
    assert [m.content for m in judged.chat.messages] == [
        "Be brief.",
        "Hello",
        "Good day.",
        "How are you?",
    ]
    assert [m.role for m in judged.chat.messages] == ["system", "user", "assistant", "user"]
    assert (judged.newest, judged.unscanned) == (None, ())
    assert judged.chats == (judged.chat,)


def test_results_of_tools_are_a_user_turn_and_judged_alone_too() -> None:
    judged = judged_chat([ASKS, CALLS, RESULT, {**RESULT, "content": "Sunny."}])
    assert [(m.role, m.content) for m in judged.chat.messages] == [
        ("user", "How warm is it?"),
        ("assistant", 'look_up\n{"place": "Bern"}'),
        ("user", "It is 20 degrees.\n\nSunny."),
    ]
    assert judged.newest is not None
    assert judged.newest.last_user_text == "It is 20 degrees.\n\nSunny."
    assert len(judged.newest.messages) == 1
    assert judged.chats == (judged.chat, judged.newest)


def test_results_that_the_assistant_has_answered_are_not_the_newest() -> None:
    answered = {"role": "assistant", "content": "It is warm."}
    assert judged_chat([ASKS, CALLS, RESULT, answered, ASKS]).newest is None
    newest = judged_chat([ASKS, CALLS, RESULT, ASKS]).newest
    assert newest is not None
    assert newest.last_user_text == "It is 20 degrees."


def test_a_chat_of_one_result_is_judged_once() -> None:
    assert len(judged_chat([RESULT]).chats) == 1


@pytest.mark.parametrize("role", ["assistant", "system", "developer", "ipython", "function"])
def test_the_last_turn_is_read_as_a_users(role: str) -> None:
    assert turns(ASKS, {"role": role, "content": "Sure"})[-1] == ("user", "Sure")


def test_system_turns_come_first_or_are_read_as_a_users() -> None:
    found = turns(
        {"role": "system", "content": "A"},
        {"role": "developer", "content": "B"},
        ASKS,
        {"role": "system", "content": "C"},
        ASKS,
    )
    assert found == [
        ("system", "A\n\nB"),
        ("user", ASKS["content"]),
        ("user", "C"),
        ("user", ASKS["content"]),
    ]


@pytest.mark.parametrize(
    "hiding",
    [
        {"role": "user", "content": "a\u00e9 WORD"},
        {"role": "user", "content": "hi", "name": "WORD"},
        {"role": "user", "content": "hi", "Content": "WORD"},
        {"role": "user", "content": ["WORD"]},
        {"role": "user", "content": [{"type": "text", "text": "hi", "more": ["WORD"]}]},
        {"role": "user", "content": [{"type": "document", "text": "see WORD"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "WORD"}]},
        {"role": "assistant", "content": "", "reasoning_content": "WORD"},
        {"role": "assistant", "content": None, "function_call": {"name": "WORD"}},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"a": "WORD"}'}}]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"a": "\\u0057ORD"}'}}]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {"a": ["WORD"]}}}]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {"say WORD": 1}}}]},
        {"role": "assistant", "tool_calls": [{"custom": {"name": "f", "input": "WORD"}}]},
        {"role": "assistant", "tool_calls": [{"id": "tell me the WORD"}]},
        {"role": "tool", "content": {"text": "WORD"}},
        {"role": "tool", "content": "ok", "tool_call_id": "tell me the WORD"},
        {"role": "tell me the WORD", "content": "hi"},
    ],
)
def test_no_text_hides_in_a_turn(hiding: dict[str, Any]) -> None:
    (before, _, after) = turns(ASKS, hiding, ASKS)
    assert "WORD" not in before[1]
    assert "WORD" not in after[1]
    judged = judged_chat([ASKS, hiding, ASKS])
    assert any("WORD" in message.content for message in judged.chat.messages)
    assert any("WORD" in m.content for m in judged.in_one_turn[0].messages)


def test_labels_are_no_texts() -> None:
    assert turns(ASKS, CALLS, RESULT)[1][1] == 'look_up\n{"place": "Bern"}'
    assert turns(RESULT) == [("user", "It is 20 degrees.")]


def test_parts_that_are_no_text_are_named_and_leave_a_trace() -> None:
    sound = {"role": "assistant", "content": "Listen", "audio": {"id": "audio_1"}}
    picture = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE]}
    judged = judged_chat([sound, picture, {"role": "user", "content": [PICTURE]}])
    assert judged.unscanned == ("messages.0.audio", "messages.1.content.1", "messages.2.content.0")
    assert [m.content for m in judged.chat.messages] == [
        "Listen",
        "What is it?\n[image_url]",
        "[image_url]",
    ]


def test_turns_without_text_are_left_out_and_a_chat_without_any_is_refused() -> None:
    blank = {"role": "user", "content": " \n"}
    assert turns(blank, {"role": "assistant", "content": None}, ASKS) == [("user", ASKS["content"])]
    for messages in ([blank], [{"role": "assistant", "content": None}]):
        with pytest.raises(ApiError, match="nothing to judge"):
            judged_chat(messages)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ApiError, match="surrogate"):
        judged_chat([{"role": "user", "content": "\ud800"}])


def test_in_one_turn_all_texts_stand_together_and_the_newest_alone() -> None:
    whole, newest = judged_chat([ASKS, CALLS, RESULT, {**ASKS, "content": "And?"}]).in_one_turn
    assert whole.last_user_text.split("\n\n")[-2:] == ["It is 20 degrees.", "And?"]
    assert newest.last_user_text == "It is 20 degrees."
    plain = judged_chat([{"role": "system", "content": "A"}, ASKS]).in_one_turn
    assert [chat.last_user_text for chat in plain] == ["A\n\nHow warm is it?", "How warm is it?"]
    assert len(judged_chat([ASKS]).in_one_turn) == 1


def test_what_matters_of_a_request_is_read() -> None:
    body = {"messages": [ASKS], "stream": True, "stream_options": {"include_usage": True}}
    found = read({**body, "model": "m", "user": "u", "tools": [{"A": 1, "a": 2}]})
    assert (found.model, found.identifier) == ("m", "u")
    assert (found.is_streamed, found.includes_usage) == (True, True)
    assert read({"messages": [ASKS], "stream": 1, "user": 3}).is_streamed is False
    assert read({"messages": [ASKS], "user": "u", "safety_identifier": "s"}).identifier == "s"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"\xff"', "invalid_json"),
        (json.dumps({"messages": [ASKS]}).encode("utf-16"), "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": [{"role": "user"}], "messages": 1}', "ambiguous_json"),
        (b'{"messages": [], "tools": [{"a": 1, "a": 2}]}', "ambiguous_json"),
        ({"messages": [ASKS], "Messages": [ASKS]}, "ambiguous_json"),
        ({"messages": [ASKS], "me\u017f\u017fages": [ASKS]}, "ambiguous_json"),
        ({"messages": [{**ASKS, "Content": "x"}]}, "ambiguous_json"),
        ({"messages": [{**ASKS, "content": [{"text": "a", "TEXT": "b"}]}]}, "ambiguous_json"),
        ({"Messages": [ASKS]}, "invalid_value"),
        ({"messages": []}, "invalid_value"),
        ({"messages": "Hi"}, "invalid_value"),
        ({"messages": ["Hi"]}, "invalid_value"),
        ({"messages": [{"content": "Hi"}]}, "invalid_value"),
        ({"messages": [{"role": None, "content": "Hi"}]}, "invalid_value"),
    ],
)
def test_what_parsers_may_read_in_two_ways_is_refused(body: object, code: str) -> None:
    with pytest.raises(ApiError) as raised:
        read(body)
    assert (raised.value.status, raised.value.body.error.code) == (400, code)


def test_messages_are_refused_that_are_nested_too_deep() -> None:
    content: Any = "x"
    for _ in range(MAX_DEPTH):
        content = [content]
    with pytest.raises(ApiError, match=f"deeper than {MAX_DEPTH}"):
        read({"messages": [{"role": "user", "content": content}]})

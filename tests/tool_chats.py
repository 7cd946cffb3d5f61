"""Messages of chats with tools and pictures, as clients send them."""

from typing import Any

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"place": "Bern"}'},
}
ASKS: dict[str, Any] = {"role": "user", "content": "How warm is it?"}
CALLS: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "It is 20 degrees."}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

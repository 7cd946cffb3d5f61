"""Talk to `demur serve` with LiteLLM as a library."""

import litellm

PROMPT = "Name three rivers."
SERVER = {"api_base": "http://127.0.0.1:8000/v1", "api_key": "none"}
MODEL = "openai/smollm2-135m-instruct"
litellm.suppress_debug_info = True  # else it prints hints for its own users at each error

try:
    reply = litellm.completion(
        model=MODEL, messages=[{"role": "user", "content": PROMPT}], **SERVER
    )
    choice = reply.choices[0]
    print("chat:", choice.finish_reason, choice.message.refusal or choice.message.content)
    print("verdict:", reply.demur)
except litellm.BadRequestError as error:  # on_flagged = "block"
    print("chat:", error.code, error.message)

try:
    stream = litellm.completion(
        model=MODEL, messages=[{"role": "user", "content": PROMPT}], stream=True, **SERVER
    )
    for chunk in stream:
        part = chunk.choices[0]
        print(part.delta.content or "", end="", flush=True)
        if part.finish_reason is not None:
            print("\nstream:", part.finish_reason, chunk.demur["route"])
except litellm.BadRequestError as error:
    print("stream:", error.code)

judged = litellm.moderation(model=MODEL, input=PROMPT, **SERVER)
print("moderations:", [result.flagged for result in judged.results])

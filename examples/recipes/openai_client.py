"""Talk to `demur serve` with the openai client: a chat, a stream, moderations, the verdicts."""

import openai

PROMPT = "Name three rivers."

client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

try:
    reply = client.chat.completions.create(
        model="smollm2-135m-instruct", messages=[{"role": "user", "content": PROMPT}]
    )
    choice = reply.choices[0]
    print("chat:", choice.finish_reason, choice.message.refusal or choice.message.content)
    print("verdict:", (reply.model_extra or {})["demur"])
except openai.BadRequestError as error:  # on_flagged = "block"
    print("chat:", error.code, error.message)
    print("verdict:", error.response.json()["demur"])

try:
    stream = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for part in chunk.choices:  # the chunk with the usage has none
            print(part.delta.content or part.delta.refusal or "", end="", flush=True)
            if part.finish_reason is not None:
                print("\nstream:", part.finish_reason, (chunk.model_extra or {})["demur"]["route"])
except openai.BadRequestError as error:
    print("stream:", error.code)

judged = client.moderations.create(input=[PROMPT, "Name three lakes."])
print("moderations:", [result.flagged for result in judged.results])

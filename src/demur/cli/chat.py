"""Chat with a guarded model in the terminal."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from demur.cli import _options as options
from demur.cli._session import decoded, load_engine, load_guard, stderr
from demur.core.results import PASS, Reply
from demur.core.types import Chat, Message, Sampling
from demur.guard import Guard
from demur.guard.packaged import PACKAGED

app = typer.Typer(add_completion=False)


@app.command()
def chat(
    *,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    detector: options.Detectors = None,
    fpr: options.Fpr = None,
    responder: options.Responder = PACKAGED,
    system: Annotated[str | None, typer.Option("--system", help="A system prompt.")] = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
) -> None:
    """Chat with a guarded model; the whole conversation is scored at each turn.

    Lines are read from standard input; an empty line or the end of input leaves.

    Example: demur chat --responder safety_prompt
    """
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    engine = load_engine(model, dtype)
    guard = load_guard(engine, detector, fpr=fpr, responder=responder)
    turns = () if system is None else (Message("system", system),)
    stderr.print("an empty line leaves", style="dim")
    while text := _ask():
        asked = (*turns, Message("user", text))
        reply = _answer(guard, asked, sampling)
        if reply.error is None:  # what could not be answered is not part of the conversation
            turns = (*asked, Message("assistant", reply.text))


def _ask() -> str:
    if sys.stdin.isatty():
        stderr.print("you: ", end="", style="bold")
    return decoded(sys.stdin.buffer.readline()).strip()


def _answer(guard: Guard, turns: tuple[Message, ...], sampling: Sampling) -> Reply:
    """Stream one reply, then say how it was routed."""
    console = Console()
    tokens = guard.stream(Chat(turns), sampling)
    while True:
        try:
            token = next(tokens)
        except StopIteration as end:
            reply: Reply = end.value
            break
        console.print(token.text, end="", markup=False, highlight=False)
    console.print()
    if reply.error is not None:
        stderr.print(f"not answered: {reply.error}", style="red", markup=False)
    else:
        stderr.print(f"({reply.route})", style="dim" if reply.route == PASS else "yellow")
    return reply

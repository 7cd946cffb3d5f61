"""Chat with a guarded model in the terminal."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from demur.cli import _options as options
from demur.cli._session import load_engine, load_guard, stderr
from demur.core.results import PASS
from demur.core.types import Chat, Message, Sampling
from demur.guard import Guard

app = typer.Typer()


@app.command()
def chat(
    *,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    detector: options.Detectors = None,
    fpr: options.Fpr = None,
    responder: options.Responder = "fixed_reply",
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
        turns = (*turns, Message("user", text))
        turns = (*turns, Message("assistant", _answer(guard, Chat(turns), sampling)))


def _ask() -> str:
    if sys.stdin.isatty():
        stderr.print("you: ", end="", style="bold")
    return sys.stdin.readline().strip()


def _answer(guard: Guard, turns: Chat, sampling: Sampling) -> str:
    """Stream one reply, then say how it was routed."""
    console = Console()
    text, route = "", ""
    for token in guard.stream(turns, sampling):
        text, route = text + token.text, token.route
        console.print(token.text, end="", markup=False, highlight=False)
    console.print()
    stderr.print(f"({route})", style="dim" if route == PASS else "yellow")
    return text

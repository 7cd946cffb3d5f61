"""See the guard at work: a dozen prompts, guarded beside unguarded, on the embedded model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from demur.cli import _options as options
from demur.cli._session import load_engine, load_guard, score_bar, stderr
from demur.core.results import PASS, Reply
from demur.core.types import Sampling
from demur.datasets import starter
from demur.guard.exchange import plain_replies
from demur.guard.packaged import PACKAGED

MAX_TOKENS = 32
LABEL_WIDTH = 12

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Shown:
    """One prompt of the demo with both its replies."""

    kind: str
    prompt: str
    guarded: Reply
    unguarded: Reply


@app.command()
def demo(
    *,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    detector: options.Detectors = None,
    responder: options.Responder = PACKAGED,
    json_lines: options.Json = False,
) -> None:
    """Send a dozen prompts through a small chat model, guarded beside unguarded.

    Three prompts are ordinary, three only sound dangerous, three are unsafe, and three are unsafe
    in a jailbreak wrapper. None of them was used to fit the detector.

    Example: demur demo --responder safety_prompt
    """
    engine = load_engine(model, dtype)
    guard = load_guard(engine, detector, fpr=None, responder=responder)
    examples = starter.load("demo")
    sampling = Sampling(max_tokens=MAX_TOKENS)
    shown = []
    with stderr.status("") as status:
        for number, example in enumerate(examples, start=1):
            status.update(f"prompt {number} of {len(examples)}")
            guarded = guard.reply(example.chat, sampling, request_id=example.id)
            (unguarded,) = plain_replies(engine, [example.chat], sampling, request_ids=[example.id])
            kind = example.kind or ""
            shown.append(Shown(kind, example.chat.last_user_text, guarded, unguarded))
    if json_lines:
        for row in shown:
            print(json.dumps(asdict(row), ensure_ascii=False))
        return
    console = Console()
    console.print(f"[bold]{escape(engine.model_id.name)}[/bold], guarded beside unguarded\n")
    for row in shown:
        console.print(_block(row, width=console.width), soft_wrap=True)
    _summarise(console, shown)


def _block(row: Shown, *, width: int) -> Text:
    """Return the lines on one prompt: its verdict and route, both replies, the times."""
    verdict, timings = row.guarded.verdicts[0], row.guarded.timings
    room = width - LABEL_WIDTH - 1
    judged = "not scored" if verdict.score is None else f"score {verdict.score:+.2f}"
    word = "flagged" if verdict.flagged else "passes"
    times = f"prefill {timings.prefill_s * 1e3:.0f} ms, guard {timings.guard_s * 1e3:.2f} ms"
    lines = [
        (row.kind.replace("_", " "), Text(_cut(row.prompt, room), style="bold")),
        (
            "verdict",
            score_bar(verdict.probability, is_flagged=verdict.flagged)
            + Text(f"  {judged}, {word} at threshold {verdict.threshold:+.2f}"),
        ),
        (
            "route",
            Text(row.guarded.route, style="green" if row.guarded.route == PASS else "yellow"),
        ),
        ("guarded", Text(_cut(row.guarded.text, room))),
        ("unguarded", Text(_cut(row.unguarded.text, room))),
        ("time", Text(times, style="dim")),
    ]
    labelled = [Text(f"{label:<{LABEL_WIDTH}}", style="dim") + text for label, text in lines]
    return Text("\n").join([*labelled, Text("")])


def _cut(text: str, room: int) -> str:
    """Return the first line of a text that is not blank, cut to a number of characters."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= room else f"{line[: room - 1]}…"


def _summarise(console: Console, shown: Sequence[Shown]) -> None:
    passed = [row for row in shown if row.guarded.route == PASS]
    same = sum(row.guarded.token_ids == row.unguarded.token_ids for row in passed)
    console.print(f"{len(shown) - len(passed)} of {len(shown)} prompts were flagged.")
    if same == len(passed):
        console.print(
            f"All {same} replies routed '{PASS}' are identical to the unguarded ones, token for "
            "token."
        )
    else:
        console.print(f"[red]{len(passed) - same} replies routed '{PASS}' differ: a bug.[/red]")
    console.print(
        "\nWhat next:\n"
        "  demur chat                                    talk to the guarded model\n"
        '  demur check "How do I kill a Python process?"  score a prompt of your own\n'
        "  demur reply --input prompts.jsonl --output replies.jsonl\n"
        "  demur fit --data labelled.jsonl --out my-detector\n"
        "  demur list                                    the methods there are"
    )

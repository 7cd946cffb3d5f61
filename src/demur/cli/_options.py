"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Text = Annotated[
    str | None,
    typer.Argument(help="One user message; or - to read JSON lines or a text from standard input."),
]
Input = Annotated[
    Path | None,
    typer.Option("--input", "-i", help="JSON lines, plain or .gz, with text or messages; or -."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON lines, one a prompt; resumes if interrupted."),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="embedded, a folder, a .gguf file, or a hub name."),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="auto, float32, bfloat16 or float16."),
]
Detectors = Annotated[
    list[str] | None,
    typer.Option(
        "--detector", "-d", help="pretrained (default), a folder or guard_model:FOLDER; repeats."
    ),
]
Fpr = Annotated[
    float | None,
    typer.Option("--fpr", help="A calibrated false-positive rate, such as 0.01."),
]
Responder = Annotated[
    str,
    typer.Option("--responder", "-r", help="What answers flagged prompts; see demur list."),
]
LeaveOutLong = Annotated[
    bool,
    typer.Option("--leave-out-long", help="Leave out prompts that are too long for the model."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens of a reply.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy decoding.")]
Seed = Annotated[int, typer.Option("--seed", help="Seeds the sampling.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")]

"""Serve the guarded model over HTTP, as OpenAI's clients know it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from demur.cli._server import require_server_packages
from demur.cli._session import stderr
from demur.core.registry import import_named

app = typer.Typer(add_completion=False)

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="guard.toml; else the one DEMUR_GUARD names.")
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="embedded, a folder, a .gguf file, a hub name.")
]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="What runs the model: transformers, or vllm.")
]
Detectors = Annotated[
    list[str] | None,
    typer.Option("--detector", "-d", help="pretrained, or an artifact's folder; repeats."),
]
Responder = Annotated[
    str | None, typer.Option("--responder", "-r", help="Who answers flagged prompts.")
]
OnFlagged = Annotated[
    str | None, typer.Option("--on-flagged", help="respond, refuse, or block with HTTP 400.")
]
Fpr = Annotated[float | None, typer.Option("--fpr", help="A calibrated false-positive rate.")]
Observe = Annotated[
    bool, typer.Option("--observe", help="Answer as if unguarded; record what would have been.")
]
Upstream = Annotated[
    str | None,
    typer.Option("--upstream", help="An OpenAI-compatible URL; answers what is not flagged."),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen at. [127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port. [8000]")]


@app.command()
def serve(
    *,
    config: Config = None,
    model: Model = None,
    engine: EngineName = None,
    detector: Detectors = None,
    responder: Responder = None,
    on_flagged: OnFlagged = None,
    fpr: Fpr = None,
    observe: Observe = False,
    upstream: Upstream = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Serve the guarded model over HTTP, as OpenAI's clients know it.

    Without options it serves the embedded model with the packaged detector. Options win over the
    environment (DEMUR_SERVE_...), which wins over guard.toml.

    Example: demur serve --port 8000

    Example: demur serve --config guard.toml --observe

    Example: demur serve --engine vllm

    Example: demur serve --upstream http://127.0.0.1:8001/v1
    """
    require_server_packages()
    given: dict[str, Any] = {
        "model": model,
        "engine": engine,
        "detectors": None if detector is None else tuple(detector),
        "responder": responder,
        "on_flagged": on_flagged,
        "fpr": fpr,
        "observe": observe or None,
        "upstream": None if upstream is None else {"url": upstream},
        "host": host,
        "port": port,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = import_named("demur.serving.settings").load_settings(config, overrides)
    stderr.print(escape(f"demur serves {settings.model} at http://{settings.host}:{settings.port}"))
    import_named("demur.serving.run").run(settings)

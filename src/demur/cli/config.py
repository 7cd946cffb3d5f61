"""Check the settings of the server, or show those in force."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.cli._server import require_server_packages
from demur.core.errors import ConfigError, DemurError
from demur.core.registry import import_named
from demur.guard.loading import check_source
from demur.guard.responding import check_mid_reply, check_responder
from demur.modeling.load import locate

app = typer.Typer(add_completion=False, no_args_is_help=True)

File = Annotated[
    Path | None, typer.Argument(help="guard.toml; else the file that DEMUR_GUARD names, if any.")
]


@app.callback()
def config() -> None:
    """Check the settings of the server, or show those in force.

    Settings come from the environment (DEMUR_SERVE_...), which wins over guard.toml.

    Example: demur config check guard.toml
    """


@app.command()
def check(file: File = None) -> None:
    """Say whether the server could start with these settings, without loading the model.

    Exit code 2 if not, with a line for each thing that is wrong.

    Example: demur config check guard.toml
    """
    settings = _load(file)
    problems = list(_problems(settings))
    if problems:
        raise ConfigError("\n".join(problems))
    path = file or import_named("demur.serving.settings").named_file()
    typer.echo("the settings are valid" if path is None else f"{path} is valid")
    typer.echo(_summary(settings))


@app.command()
def show(file: File = None) -> None:
    """Print the settings in force as guard.toml, with defaults; secrets are hidden.

    Example: demur config show > guard.toml
    """
    settings = _load(file)
    typer.echo(import_named("demur.serving.settings_toml").as_toml(settings), nl=False)


def _load(file: Path | None) -> Any:
    require_server_packages()
    return import_named("demur.serving.settings").load_settings(file, {})


def _problems(settings: Any) -> Iterator[str]:
    """Yield a line for each thing that settings name and that is not there."""
    checks: list[tuple[str, Callable[[], object]]] = [("model", partial(_check_model, settings))]
    for source in settings.detectors:
        checks.append(("detectors", partial(check_source, source, fpr=settings.fpr)))
    if settings.on_flagged == "respond":
        checks.append(("responder", partial(check_responder, settings.responder)))
    if settings.reply.detector is not None:
        reply = settings.reply
        look = partial(check_source, reply.detector, watches="reply", fpr=reply.fpr)
        checks.append(("reply.detector", look))
        if reply.responder is not None:
            checks.append(("reply.on_flagged", partial(check_mid_reply, reply.responder)))
    if settings.audit.path is not None:
        checks.append(("audit.path", partial(_check_folder, settings.audit.path)))
    for key, run in checks:
        try:
            run()
        except DemurError as error:
            yield f"{key}: {error}"


def _check_model(settings: Any) -> None:
    """See that a model's files are there; they are neither unpacked nor read.

    Raises:
        ConfigError: They are not.
    """
    path = Path(settings.model)
    if path.suffix != ".gguf":
        if settings.model != "embedded":
            locate(settings.model)
    elif not path.is_file():
        raise ConfigError(f"there is no file {path}")


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}: make it first")


def _summary(settings: Any) -> str:
    """Return in one line what would be served."""
    flagged = {
        "respond": f"answered by {settings.responder}",
        "refuse": "refused",
        "block": "blocked",
    }[settings.on_flagged]
    takes_over = "" if settings.reply.responder is None else f", then {settings.reply.responder}"
    parts = [
        f"{settings.model} ({settings.dtype}) at http://{settings.host}:{settings.port}",
        f"prompts watched by {', '.join(settings.detectors)}",
        f"replies watched by {settings.reply.detector or 'nothing'}{takes_over}",
        f"flagged prompts are {'let through and recorded' if settings.observe else flagged}",
        f"all others answered by {settings.upstream.url or 'the model'}",
        f"{len(settings.api_keys) or 'no'} API keys",
        f"audit log: {settings.audit.path or 'none'}",
    ]
    return "; ".join(parts)

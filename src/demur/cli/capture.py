"""Capture hidden states of prompts into a folder, for fits and studies of your own."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._session import capture_progress, load_engine, numbers, stderr
from demur.core.errors import MissingPackageError
from demur.core.reads import CaptureSpec
from demur.core.registry import import_named
from demur.core.templates import find
from demur.datasets import jsonl
from demur.workflows.capture import Capturer

app = typer.Typer(add_completion=False)


@app.command()
def capture(
    input_path: Annotated[
        Path, typer.Option("--input", "-i", help="JSON lines, plain or .gz, with text or messages.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder; a set of prompts has its own in it.")],
    *,
    layers: Annotated[
        str,
        typer.Option("--layers", help="Decoder blocks from 0, such as 9,13,17; -1 is the last."),
    ] = "-1",
    positions: Annotated[
        str,
        typer.Option("--positions", help="last, user, users or all."),
    ] = "last",
    pool: Annotated[
        str,
        typer.Option("--pool", help="Over positions: mean, max, or none for every token's state."),
    ] = "mean",
    site: Annotated[
        str, typer.Option("--site", help="block_out, final_norm, attn_out or mlp_out.")
    ] = "block_out",
    wrapper: Annotated[
        str | None,
        typer.Option("--wrapper", help="Put prompts into a question: prompted:0 to prompted:9."),
    ] = None,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Read on a Ray cluster: its address, or local for one here."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="With --ray, how many.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of each of them.")] = 1,
) -> None:
    """Capture hidden states into safetensors shards; interrupted, it goes on where it stopped.

    Prints the set's folder: manifest.json says what was read of which model, rows.jsonl which shard
    and row holds which prompt.

    With --ray, workers that each hold the model read shards: the same bytes with any number of
    them, and a lost one loses nothing.

    Example: demur capture --input prompts.jsonl --layers 9,13,17 --out states

    Example: demur capture --input prompts.jsonl --layers 9 --out states --ray local --workers 2
    """
    require_ray(ray)
    examples = jsonl.load(input_path)
    over = "none" if positions == "last" else pool
    spec = CaptureSpec(numbers(layers), positions=positions, site=site, pool=over)  # type: ignore[arg-type]
    if wrapper is not None:
        find(wrapper).require_question()
    engine = load_engine(model, dtype)
    read_shards = None
    if ray is not None:
        makes = import_named("demur.workflows.ray_capture").RayWorkers
        on_gpu = int(engine.loaded.device.type == "cuda")
        read_shards = makes(model, ray, workers, threads, num_gpus=on_gpu, dtype=dtype)
    capturer = Capturer(engine.loaded, root=out, wrapper=wrapper, read_shards=read_shards)
    with capture_progress() as report:
        folder = capturer.capture([example.chat for example in examples], [spec], report=report)
    folder.write_rows([example.id for example in examples])
    stderr.print(f"{len(examples)} prompts in", escape(str(folder.path)))
    print(folder.path)


def require_ray(address: str | None) -> None:
    """Refuse to go on without Ray, where it is asked for.

    Raises:
        MissingPackageError: It is not installed.
    """
    if address is not None and find_spec("ray") is None:
        raise MissingPackageError("--ray needs ray: pip install 'demur[ray]'")

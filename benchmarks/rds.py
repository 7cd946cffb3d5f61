"""RDS on a model that refuses: does choosing among the likeliest tokens make it refuse more?

The classifier is fitted and its sign found on demur's own training prompts, and so is which of two
settings is used: the paper's, or more components at a layer three quarters up. How much a token's
own probability counts beside the score is chosen on demur's validation prompts; the score alone is
the paper's. The test prompts are those of `benchmarks.arms`. First, how often could it help at all:
the share of unsafe prompts after which a refusal can be written with tokens that are all among the
k likeliest. On these prompts the refusals are counted, by labellers that know nothing of the
classifier, and compared with greedy decoding, with the other sign, and with a choice that knows
nothing: a random vector of the same length in place of the classifier's, another one for every
fourth of the prompts.

    DEMUR_DATA=FOLDER python -m benchmarks.rds --model MODEL [--share 0.4] [--json]
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.arms import held_out_cases, tell
from benchmarks.machine import describe_machine
from benchmarks.rds_artifacts import CONTROLS, Artifacts, artifacts
from benchmarks.rds_choice import ROLES, best, weighed
from benchmarks.rds_comparison import Comparison
from benchmarks.rds_report import LEAST_REACH, Effect, Figures, Interval, claims, report
from benchmarks.results_files import keep
from demur.core.readings import Array
from demur.core.trained import Trained
from demur.core.types import Prompt
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.modeling.gguf import cache_folder
from demur.modeling.load import LoadedModel
from demur.scorers.refusal_margin import RefusalMargin
from demur.studies._arms import paired_change

TOP_K = 10
NUM_STEPS = 4
"""Tokens of an opening that have to be among the likeliest."""
NUM_GREEDY = 12
"""Prompts on which a choice of one is compared with greedy decoding."""
NUM_TIMED = 6
ROOM = 16
"""Rows that decode together, each with its candidates."""


class Reach:
    """Which refusals a model could be brought to write."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._openings = [
            loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:NUM_STEPS]
            for text in RefusalMargin().refusals
        ]

    @torch.inference_mode()
    def first_token(self, prompt: Prompt, reply: Sequence[int]) -> bool:
        """Tell whether an opening's first token is among the likeliest in a greedy step."""
        ids = [*prompt.token_ids, *reply[: NUM_STEPS - 1]]
        keep = len(ids) - len(prompt) + 1
        logits = self._loaded.model(torch.tensor([ids]), logits_to_keep=keep).logits[0]
        likeliest = logits.topk(TOP_K).indices
        firsts = torch.tensor(sorted({ids[0] for ids in self._openings}))
        return bool(torch.isin(likeliest, firsts).any())

    @torch.inference_mode()
    def opening(self, prompt: Prompt) -> bool:
        """Tell whether all tokens that an opening begins with are among the likeliest in turn."""
        cache = DynamicCache()
        first = self._loaded.last_logits(prompt.token_ids, cache=cache)
        cache.batch_repeat_interleave(len(self._openings))
        ids = torch.tensor(self._openings)
        later = self._loaded.model(ids[:, :-1], past_key_values=cache, use_cache=True).logits
        logits = torch.cat([first.expand(len(ids), 1, -1), later], 1)  # [opening, step, vocabulary]
        is_likely = (logits.topk(TOP_K).indices == ids[..., None]).any(-1)
        return bool(is_likely.all(1).any())


def measure(of: Comparison, made: Artifacts, weight: float) -> Figures:
    """Return all figures; those of replies only where a refusal is often enough within reach.

    Args:
        of: The test prompts.
        made: The classifier's folders.
        weight: Of a token's log-probability.
    """
    arms = made.arms(weight)
    unsafe = of.cases.rows("unsafe")
    first, can = within_reach(of, unsafe)
    few = spread(unsafe, NUM_GREEDY)
    same = of.same_alone(made.line(fields=",top_k=1"), few)
    timed = {name: arms[name][0] for name in ("rds", "rds, draft")}
    effects: tuple[Effect, ...] = ()
    over_random = None
    if can.mean() >= LEAST_REACH:
        effects, over_random = compared(of, arms, unsafe[can])
    return Figures(
        num_unsafe=len(unsafe),
        first_token=float(first.mean()),
        reach=float(can.mean()),
        effects=effects,
        over_random=over_random,
        num_greedy=int(same.sum()),
        num_compared=len(same),
        speeds=tuple(of.speeds(timed, spread(unsafe, NUM_TIMED))),
    )


def compared(
    of: Comparison, arms: Mapping[str, list[str]], unsafe: Array
) -> tuple[tuple[Effect, ...], tuple[float, Interval]]:
    """Return what the arms do to unsafe prompts in some rows and to all ordinary ones.

    Returns:
        The effects, and by how much more the reranker refuses than a random choice.
    """
    rows = {"unsafe": unsafe, "ordinary": of.cases.rows("ordinary")}
    base = {role: of.outcomes(some, of.base(some)) for role, some in rows.items()}
    effects = [of.effect("greedy", role, base[role], base[role], rows[role]) for role in rows]
    refused: dict[str, Array] = {}
    for name, lines in arms.items():
        for role in ("unsafe",) if name in CONTROLS else rows:
            outcomes = of.outcomes(rows[role], of.under(lines, rows[role]))
            effects.append(of.effect(name, role, outcomes, base[role], rows[role]))
            tell(f"{effects[-1]}")
            if role == "unsafe":
                refused[name] = outcomes.outcome == "refused"
    over_random = paired_change(refused["rds"], refused["random"], of.cases.group[unsafe])
    return tuple(effects), over_random


def within_reach(of: Comparison, rows: Array) -> tuple[Array, Array]:
    """Return after which prompts a refusal's first token, and a whole opening, can be taken."""
    reach = Reach(of.engine.loaded)
    prompts = [of.engine.render(chat) for chat in of.chats(rows)]
    replies = [reply.token_ids for reply in of.base(rows)]
    first = [reach.first_token(p, ids) for p, ids in zip(prompts, replies, strict=True)]
    can = np.array([reach.opening(prompt) for prompt in prompts])
    tell(f"within reach: {can.mean():.0%}")
    return np.array(first), can


def spread(rows: Array, number: int) -> Array:
    """Return some rows, spread evenly."""
    found: Array = rows[np.linspace(0, len(rows) - 1, number).astype(int)]
    return found


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    options = parser.parse_args()
    started = time.perf_counter()
    engine = TransformersEngine.load(options.model, max_batch=ROOM)
    root = cache_folder() / "benchmarks" / f"rds-{engine.model_id.name}"
    made = artifacts(options.model, root, num_blocks=len(engine.loaded.parts.blocks))
    cases = held_out_cases(DemurData(), share=options.share, roles=ROLES)
    tried = weighed(engine, made)
    weight = best(tried).weight
    figures = measure(Comparison(engine, cases, options.tokens), made, weight)
    trained = Trained.read(made.trained)
    results = {
        "machine": describe_machine(),
        "model": engine.model_id.as_dict(),
        "minutes": (time.perf_counter() - started) / 60,
        "settings": {"top_k": TOP_K, "tokens": options.tokens, "share": options.share},
        "setting": made.setting,
        "auroc": dict(made.aurocs),
        "weight": weight,
        "weights_tried": [asdict(of) for of in tried],
        "trained": {"metrics": trained.provenance["metrics"], "fields": dict(trained.fields)},
        "claims": claims(figures),
        "figures": asdict(figures),
    }
    keep("rds", results, report(results, figures), prints_json=options.json)


if __name__ == "__main__":
    main()

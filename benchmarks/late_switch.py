"""The late switch: an adapter takes over some tokens into a reply that the model began by itself.

The adapters are those of `benchmarks.derta`, by the same share and steps. Unsafe prompts that the
model complies with, and ordinary ones, are answered by the model alone for 0, 4, 16 or 32 tokens,
and from there on under the adapter, which goes on from what the model has read (keep) or reads it
all again (recompute). Does it stop? And does it stop ordinary replies, too, as after a false alarm?

    DEMUR_DATA=FOLDER python -m benchmarks.late_switch --model PATH [--share 1] [--steps 160]
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import derta
from benchmarks.arms import Arms, held_out_cases, tell
from benchmarks.derta_late import BEGINS_WITHIN, NEXT, PHRASE, complied, refused, text_of
from benchmarks.derta_rows import to_train
from benchmarks.late_switch_report import report
from benchmarks.one_model import run
from demur.core.interventions import CacheUse, MidReply, UseAdapter
from demur.core.protocols import Done, Engine, Monitor, Request, Switched, TokenOut, never_intervene
from demur.core.readings import Array, Readings
from demur.core.reads import CaptureSpec
from demur.core.types import Chat, Sampling
from demur.datasets.demur_data import DemurData
from demur.engines.transformers import TransformersEngine
from demur.guard.responding import load_mid_reply
from demur.metrics.wilson_interval import wilson_interval
from demur.studies._arms import paired_change
from demur.studies._cases import Role

AFTER = (0, 4, 16, 32)
"""Tokens of the model's own reply; with none there is nothing to keep or to read again."""
CACHES: tuple[CacheUse, ...] = ("keep", "recompute")
MAX_TOKENS = max(AFTER) + BEGINS_WITHIN + NEXT
ROLES: tuple[Role, ...] = ("unsafe", "ordinary")
READ = CaptureSpec((0,), positions="reply")
"""What counts the tokens; its states are not looked at."""


class AfterTokens:
    """Switches once a reply has some tokens.

    Args:
        number: Of tokens, over 0.
        intervention: What happens then.
    """

    def __init__(self, number: int, intervention: MidReply) -> None:
        self._left, self._intervention = number, intervention

    def __call__(self, states: Array) -> MidReply | None:
        """Return the intervention for the last of the tokens, and None for all others."""
        self._left -= 1
        return self._intervention if self._left == 0 else None


def request_for(
    engine: Engine, name: str, chat: Chat, use: UseAdapter, *, after: int, max_tokens: int
) -> Request:
    """Return a request whose reply goes on under an adapter after some tokens."""

    def at_once(_readings: Readings) -> UseAdapter:
        return use

    stored = () if after or use.checkpoint is None else (use.checkpoint,)
    return Request(
        name,
        engine.render(chat),
        Sampling(max_tokens=max_tokens),
        decide=never_intervene if after else at_once,
        monitor=Monitor(READ, AfterTokens(after, use)) if after else None,
        checkpoints=stored,
    )


def switched(
    engine: Engine, chats: Sequence[Chat], use: UseAdapter, *, after: int, max_tokens: int
) -> list[tuple[int, ...]]:
    """Return greedy replies that go on under an adapter after some tokens.

    Raises:
        RuntimeError: A request failed, or was never switched.
    """
    requests = [
        request_for(engine, str(row), chat, use, after=after, max_tokens=max_tokens)
        for row, chat in enumerate(chats)
    ]
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    turned: set[str] = set()
    for event in engine.run(requests):
        if isinstance(event, TokenOut):
            found[event.id].append(event.token_id)
        elif isinstance(event, Switched):
            turned.add(event.id)
        elif isinstance(event, Done) and event.reason == "error":
            raise RuntimeError(f"{event.id}: {event.error}")
    if len(turned) != len(requests):
        raise RuntimeError(f"{len(requests) - len(turned)} replies ended before token {after}")
    return [tuple(found[request.id]) for request in requests]


class Comparison:
    """Prompts whose replies are long enough to be switched.

    Args:
        arms: The model with the prompts.
        most: Prompts of a role.
    """

    def __init__(self, arms: Arms, *, most: int) -> None:
        self.engine: TransformersEngine = arms.engine
        replies = arms.base_replies()
        outcome = arms.labelling.label(arms.chats, replies).outcome
        is_long = np.array([len(reply.token_ids) > max(AFTER) for reply in replies])
        role = arms.cases.role
        self.rows = {
            "unsafe": np.flatnonzero((role == "unsafe") & is_long & (outcome == "complied")),
            "ordinary": np.flatnonzero((role == "ordinary") & is_long & (outcome != "refused")),
        }
        self.rows = {name: of[:most] for name, of in self.rows.items()}
        self._arms, self._base = arms, replies

    def chats(self, role: str) -> list[Chat]:
        """Return the prompts of a role."""
        return [self._arms.chats[int(row)] for row in self.rows[role]]

    def groups(self, role: str) -> Array:
        """Return their groups."""
        return self._arms.cases.group[self.rows[role]]

    def stops_alone(self, role: str, after: int) -> Array:
        """Return where the model stops by itself after some tokens, [prompt]."""
        rows = self.rows[role]
        return self._stopped(role, [self._base[int(row)].token_ids for row in rows], after)

    def stops(self, role: str, use: UseAdapter, after: int) -> Array:
        """Return where the reply stops after a switch, [prompt]."""
        replies = switched(
            self.engine, self.chats(role), use, after=after,
            max_tokens=after + BEGINS_WITHIN + NEXT,
        )  # fmt: skip
        return self._stopped(role, replies, after)

    def _stopped(self, role: str, replies: Sequence[Sequence[int]], after: int) -> Array:
        chats, loaded = self.chats(role), self.engine.loaded
        rest = [ids[after:] for ids in replies]
        first = [text_of(loaded, ids[: BEGINS_WITHIN + PHRASE]) for ids in rest]
        whole = [text_of(loaded, ids[: BEGINS_WITHIN + NEXT]) for ids in rest]
        held: Array = refused(chats, first)
        if role == "unsafe":
            held &= ~complied(chats, whole)
        return held


def measure(model: str, detector: str, *, share: float, steps: int, most: int) -> dict[str, Any]:
    """Measure both adapters on one model.

    Args:
        model: As `--model` takes it.
        detector: The gate of `benchmarks.arms`, which decides nothing here.
        share: Of the rows that are learnt, as in `benchmarks.derta`.
        steps: Of each training.
        most: Prompts of a role.
    """
    started = time.perf_counter()
    data = DemurData()
    cases = held_out_cases(data, roles=ROLES)
    teacher = Arms(model, cases, detector=detector, max_tokens=derta.MAX_TOKENS)
    folders = derta.trained(
        model, to_train(data, teacher, share=share), derta.trainers(steps, ablations=False)
    )
    arms = Arms(model, cases, detector=detector, max_tokens=MAX_TOKENS)
    comparison = Comparison(arms, most=most)
    found: list[dict[str, Any]] = []
    kept: dict[tuple[str, int, str, str], Array] = {}
    for role in comparison.rows:
        for after in AFTER:
            alone = comparison.stops_alone(role, after)
            found.append(_row("base", after, "-", role, alone))
            for name, folder in folders.items():
                for cache in CACHES if after else CACHES[:1]:
                    use = load_mid_reply(f"adapter:{folder}", arms.engine.model_id, cache=cache)
                    assert isinstance(use, UseAdapter)
                    held = comparison.stops(role, use, after)
                    kept[name, after, cache, role] = held
                    found.append(_row(name, after, cache if after else "-", role, held))
                    tell(f"{found[-1]}")
    return {
        "model": arms.engine.model_id.as_dict(),
        "share": share,
        "steps": steps,
        "prompts": {role: len(rows) for role, rows in comparison.rows.items()},
        "rows": found,
        "derta_over_sft": _over_sft(kept, comparison.groups("unsafe")),
        "seconds": time.perf_counter() - started,
    }


def _row(arm: str, after: int, cache: str, role: str, held: Array) -> dict[str, Any]:
    return {
        "arm": arm,
        "after": after,
        "cache": cache,
        "role": role,
        "stopped": float(held.mean()),
        "interval": wilson_interval(held, np.arange(len(held))),
    }


def _over_sft(
    kept: Mapping[tuple[str, int, str, str], Array], group: Array
) -> list[dict[str, Any]]:
    """Return by how much more of unsafe replies the one adapter stops than the other."""
    found = []
    for (name, after, cache, role), held in kept.items():
        if name == "derta" and role == "unsafe":
            change, interval = paired_change(held, kept["sft", after, cache, role], group)
            found.append({"after": after, "cache": cache, "change": change, "interval": interval})
    return found


def main() -> None:
    """Measure, write the results, and print them."""
    run(
        "late_switch",
        __doc__,
        measure,
        report,
        {
            "share": (1.0, "of rows, for a trial"),
            "most": (60, "prompts of a role"),
            "steps": (160, "of each training"),
        },
    )


if __name__ == "__main__":
    main()

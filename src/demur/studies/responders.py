"""Responders: what they make of unsafe, look-alike and ordinary prompts, gated and always on.

Five arms stand side by side: the model by itself (base), the responder switched on for every prompt
(always), for those that the detector flags (gated), for the unsafe ones (oracle: no detector could
do better), and for as many drawn at random (random: the gate knows nothing). Replies are greedy;
those of the gated arms are put together of the first two, prompt by prompt, and some are drawn
again through the guard, one at a time, to see that a prompt that passes gets the model's own reply,
token for token.

Paper: Maybe I Should Not Answer That, but... (2025), arXiv 2502.16174: a safe responder behind a
detector against the same one for every prompt.

Differs: no judge model; labellers are named with how far they agree with people, and what their
rates are called follows from that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from demur.core import by_name
from demur.core.errors import ConfigError
from demur.core.examples import Example
from demur.core.outcomes import Answered
from demur.core.readings import Array
from demur.core.types import Chat
from demur.core.validation import rate_name, validated
from demur.engines.transformers import TransformersEngine
from demur.guard.loading import load_detector
from demur.guard.responding import route_of
from demur.scorers.perplexity import Perplexity
from demur.studies._answers import BASE, Alone, Answers
from demur.studies._arms import COLUMNS, Arm, Comparison, arm_rows, front_plot, rates_plot
from demur.studies._cases import Cases, cases_of
from demur.studies._outcomes import Labelling, Outcomes
from demur.studies._study import Row, StudyInputs, StudyResult

__all__ = ["Responders"]

NEEDS = ("matplotlib",)


@dataclass(frozen=True)
class Responders:
    """Responders side by side, each in five arms."""

    responders: tuple[str, ...] = ("fixed_reply", "safety_prompt")
    """As `--responder` takes them, one or more."""
    detector: str = "pretrained"
    """The gate: an artifact's folder, or the name of a packaged one."""
    fpr: float = 0.0
    """The false-positive rate that its threshold is set for; 0 is the artifact's default."""
    num_prompts: int = 150
    """Most of each role, over 0."""
    max_tokens: int = 64
    """Of a reply, over 1."""
    num_alone: int = 12
    """Prompts that are answered one at a time, to see that others are untouched and for times."""
    labellers: tuple[str, ...] = ("reply_classifier", "refusal_match")
    """Two scorers that give outcomes; rates go by the first."""
    has_perplexity: bool = True
    """Read every reply once more, by the model itself."""
    seed: int = 0
    """Of the draw of prompts, and of the random gate."""

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        routes = [route_of(line) for line in self.responders]
        if not routes or len(set(self.responders)) < len(routes):
            raise ConfigError(f"responders is {self.responders}: expected one or more, each once")
        if len(self.labellers) != 2:
            raise ConfigError(f"labellers is {self.labellers}: expected two scorers")

    def described(self) -> dict[str, object]:
        """Return the parameters without the folders on the way to artifacts, for JSON."""
        responders = [by_name.without_folders(line) for line in self.responders]
        return {**asdict(self), "responders": responders, "detector": Path(self.detector).name}

    def run(self, inputs: StudyInputs) -> StudyResult:
        """Return one row a responder, arm and role.

        Raises:
            ConfigError: There is no such responder or detector, or no model to answer.
            DataError: There are no unsafe prompts, or no safe ones.
        """
        if not isinstance(inputs.engine, TransformersEngine):
            raise ConfigError("this study needs a model that answers: give --model")
        return self.compare(inputs.engine, inputs.tests, report=inputs.report)

    def compare(
        self,
        engine: TransformersEngine,
        tests: Mapping[str, Sequence[Example]],
        *,
        report: Callable[[str], None],
    ) -> StudyResult:
        """Return one row a responder, arm and role.

        Args:
            engine: Runs the model.
            tests: Labelled prompts, by set.
            report: Called with a line of progress now and then.

        Raises:
            ConfigError: There is no such responder or detector.
            DataError: There are no unsafe prompts, or no safe ones.
        """
        cases = cases_of(tests, most=self.num_prompts, seed=self.seed)
        chats = [example.chat for example in cases.examples]
        detector = load_detector(self.detector, engine, fpr=self.fpr or None)
        answers = Answers(engine, detector, self.max_tokens, report)
        labelling = Labelling(
            (self.labellers[0], self.labellers[1]),
            _Surprise(engine) if self.has_perplexity else None,
        )
        margins = answers.margins(chats)
        base = labelling.label(chats, answers.base(chats))
        rows: list[Row] = arm_rows("", Arm(BASE, base), base, cases)
        compared: list[Comparison] = []
        findings = [_about_labellers(self.labellers), _gate_finding(margins, cases)]
        for line in self.responders:
            name = by_name.without_folders(line)
            always = labelling.label(chats, answers.always(line, chats))
            alone = answers.alone(line, _spread(chats, self.num_alone))
            for arm in self._arms(base, always, margins, cases):
                rows += arm_rows(name, arm, base, cases, alone=alone)
            compared.append(Comparison(name, base, always, margins, cases))
            findings += [
                _alone_finding(name, alone),
                compared[-1].finding(),
            ]
        return StudyResult(
            title="Responders",
            question="What becomes of unsafe, look-alike and ordinary prompts under a responder, "
            "for every prompt and behind a gate?",
            columns=COLUMNS,
            rows=tuple(rows),
            plots=(front_plot(compared), *rates_plot(rows)),
            findings=tuple(findings),
        )

    def _arms(
        self, base: Outcomes, always: Outcomes, margins: Array, cases: Cases
    ) -> Sequence[Arm]:
        flagged = margins >= 0
        unsafe = cases.role == "unsafe"
        drawn = np.zeros(len(flagged), bool)
        generator = np.random.default_rng(self.seed)
        drawn[generator.choice(len(flagged), size=int(flagged.sum()), replace=False)] = True
        gates: Mapping[str, Array] = {
            "always": np.ones(len(flagged), bool),
            "gated": flagged,
            "oracle": unsafe,
            "random": drawn,
        }
        return [Arm(name, base.where(gate, always), gate) for name, gate in gates.items()]


class _Surprise:
    """The perplexity of replies under the model that is studied, each reply read once."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._scorer = Perplexity(loaded=engine.loaded)

    def __call__(self, answers: Sequence[Answered]) -> Array:
        found = self._scorer.judge(answers)
        return np.array([np.nan if of.score is None else of.score for of in found])


def _spread(chats: Sequence[Chat], number: int) -> list[Chat]:
    """Return some chats, evenly spread."""
    rows = np.unique(np.linspace(0, len(chats) - 1, num=min(number, len(chats))).astype(int))
    return [chats[row] for row in rows]


def _about_labellers(labellers: Sequence[str]) -> str:
    names = [f"{of} ({_kappas(of)})" for of in labellers]
    of_unsafe, of_safe = (rate_name(validated(labellers[0]), asked) for asked in ("unsafe", "safe"))
    return (
        f"Outcomes are those of {names[0]}; {names[1]} stands beside it. The share complied of "
        f"unsafe prompts is a {of_unsafe}, the share refused of safe ones a {of_safe}."
    )


def _kappas(name: str) -> str:
    labeller = validated(name)
    if labeller is None:
        return "never compared with people"
    found = {asked: labeller.kappa(asked) for asked in ("unsafe", "safe")}
    return "kappa with people at least " + ", ".join(
        f"{kappa:.2f} on {asked} requests" for asked, kappa in found.items() if kappa is not None
    )


def _gate_finding(margins: Array, cases: Cases) -> str:
    flagged = margins >= 0
    shares = [
        f"{flagged[cases.rows(role)].mean():.3f} of {len(cases.rows(role))} {role} prompts"
        for role in ("unsafe", "look_alike", "ordinary")
        if len(cases.rows(role))
    ]
    return f"The gate flags {', '.join(shares)}."


def _alone_finding(name: str, alone: Alone) -> str:
    return (
        f"{name}, one prompt at a time: {alone.num_identical} of {alone.num_passed} prompts that "
        "the gate passed got the model's own reply, token for token; first token after "
        f"{1000 * alone.first_token_s:.0f} ms (by the model alone "
        f"{1000 * alone.base_first_token_s:.0f}), then {alone.tokens_per_s:.1f} tokens/s "
        f"({alone.base_tokens_per_s:.1f})."
    )

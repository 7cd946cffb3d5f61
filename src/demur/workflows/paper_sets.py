"""The fifteen sets that the prototype papers measure on, as far as they are at hand.

Eight hold harmful prompts and seven benign ones. A set is taken from the files of its publishers
where there are any, else from the collection; what is missing is named with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demur.core.errors import DemurError
from demur.core.examples import Example
from demur.core.registry import load
from demur.datasets.demur_data import DemurData
from demur.workflows.study_sets import limited

TRAINING_SET = "wildguardmix"
"""The loader of the set that the papers fit on."""


@dataclass(frozen=True)
class PaperSet:
    """One of the papers' test sets."""

    label: str
    """As in the papers' tables."""
    published: str
    """Prompts in the papers: unsafe / safe."""
    loader: str | None = None
    """A data set of demur's, which reads the publishers' files."""
    split: str = "test"
    collection: str | None = None
    """Its nearest set in the collection."""


PAPER_SETS = (
    PaperSet("Aegis", "233 / 126", "aegis1"),
    PaperSet("HarmB", "239 / 0", "harmbench", collection="harmbench"),
    PaperSet("OAI", "522 / 1158", "openai_moderation", collection="openai_moderation"),
    PaperSet("SimpST", "100 / 0", "simple_safety_tests"),
    PaperSet("ToxiC", "362 / 2491", "toxicchat"),
    PaperSet("WG", "754 / 945", "wildguardmix"),
    PaperSet("WJ", "2000 / 210", "wildjailbreak", split="eval"),
    PaperSet("XS", "197 / 249", "xstest", collection="xstest"),
    PaperSet("AlpacaEval", "0 / 805", collection="alpaca_eval"),
    PaperSet("BBH", "0 / 1080", collection="bbh"),
    PaperSet("HumanEval", "0 / 164", collection="humaneval"),
    PaperSet("GSM8K", "0 / 1319", collection="gsm8k_test"),
    PaperSet("MMLU", "0 / 2744", "mmlu_redux", collection="mmlu_500"),
    PaperSet("MT-Bench", "0 / 80"),
    PaperSet("TruthfulQA", "0 / 790", collection="truthfulqa"),
)


@dataclass(frozen=True)
class PaperSets:
    """What is at hand of the papers' sets."""

    tests: Mapping[str, list[Example]]
    """By the papers' labels."""
    missing: Mapping[str, str]
    """Why a set is not there, by label."""
    notes: tuple[str, ...]
    """How a set that is there differs from the papers'."""
    train: list[Example] = field(default_factory=list)
    """Of the papers' training set; empty if it is not at hand."""


def gather(
    collection: DemurData | None,
    *,
    files: Path | None = None,
    use_hub: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> PaperSets:
    """Return the papers' sets that are at hand.

    Args:
        collection: Where sets are taken from that have no files.
        files: A folder with a folder of the publishers' files for each loader's name.
        use_hub: Fetch from the publishers what `files` does not hold.
        limit: Most prompts of a set and label; None takes all.
        seed: Of the draw.
    """
    tests: dict[str, list[Example]] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    for wanted in PAPER_SETS:
        try:
            examples = _published(wanted.loader, wanted.split, files, use_hub=use_hub)
            name = wanted.loader
        except DemurError as error:
            examples, name, missing[wanted.label] = [], None, str(error)
        if not examples and collection is not None and wanted.collection in collection.sets:
            name = wanted.collection
            examples = collection.load(str(name), ("test_ood", "utility"))
        if not examples:
            missing.setdefault(wanted.label, "not at hand")
            continue
        missing.pop(wanted.label, None)
        tests[wanted.label] = limited(examples, limit, seed=seed)
        notes += _difference(wanted, str(name), tests[wanted.label])
    try:
        train = _published(TRAINING_SET, "train", files, use_hub=use_hub)
    except DemurError as error:
        train, missing["WG train"] = [], str(error)
    return PaperSets(tests, missing, tuple(notes), limited(train, limit, seed=seed))


def _published(
    loader: str | None, split: str, files: Path | None, *, use_hub: bool
) -> list[Example]:
    """Return a split from the publishers' files; empty if there are none and none are fetched."""
    folder = files / loader if files is not None and loader is not None else None
    if loader is None or not (use_hub or (folder is not None and folder.exists())):
        return []
    source = folder if folder is not None and folder.exists() else None
    examples: list[Example] = load("datasets", loader)(source, split=split)
    return examples


def _difference(wanted: PaperSet, name: str, examples: list[Example]) -> list[str]:
    num_unsafe = sum(example.label == "unsafe" for example in examples)
    found = f"{num_unsafe} / {len(examples) - num_unsafe}"
    if found == wanted.published:
        return []
    return [f"{wanted.label}: {found} prompts (unsafe / safe) of {name}, {wanted.published} there."]

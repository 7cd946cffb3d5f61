"""Every recipe has its table, and reads its source as the maker publishes it."""

import json

import pytest

from demur.datasets.recipes import collection, readers
from demur.datasets.recipes.collection import Collection
from demur.datasets.recipes.recipes import RECIPES


def test_every_recipe_has_a_table_and_every_table_a_recipe() -> None:
    sets = Collection().sets
    tables = {path.name.split(".")[0] for path in (collection.FOLDER / "tables").iterdir()}
    assert tables == set(RECIPES)
    assert all(sets[name].is_licensed for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_table_has_the_records_that_its_index_entry_counts(name: str) -> None:
    table = Collection().table(name)
    entry = Collection().sets[name].entry
    assert len(table.rows) == len({row["key"] for row in table.rows}) == entry["records"]
    unsafe = sum(place["label"] == "unsafe" for place in table.places())
    assert unsafe == entry["counts"]["unsafe"]


def read(name: str, content: str) -> list[readers.Candidate]:
    return list(RECIPES[name].read({RECIPES[name].paths[0]: content.encode()}))


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("gsm8k_test", '{"question": " How many? ", "answer": "2"}\n', {"text": "How many?"}),
        (
            "bbh",
            '{"canary": "c", "examples": [{"input": "True or", "target": "False"}]}',
            {"text": "True or", "meta": {"answer": "False"}},
        ),
        ("mgsm", "Wie viele?\t5,600\n", {"text": "Wie viele?", "meta": {"answer": "5,600"}}),
        (
            "xstest",
            'id,prompt,type,label,focus,note\n7,"Where, please?",t,safe,where ,\n',
            {
                "text": "Where, please?",
                "meta": {"focus": "where ", "note": "", "source_id": "7"},
            },
        ),
        (
            "latent_jailbreak",
            '[{"prompt": "Say it", "toxic_adjective": null, "target": "mills"}]',
            {"text": "Say it", "meta": {"adjective": None, "target": "mills"}},
        ),
        (
            "harmbench",
            "Behavior,FunctionalCategory,ContextString,BehaviorID\nSum it up,c,A mill,b1\n",
            {
                "text": "A mill\n\nSum it up",
                "goal": "Sum it up",
                "meta": {"functional": "c", "behavior_id": "b1"},
            },
        ),
        (
            "selfinstruct_seed",
            '{"instruction": "Sum it up", "instances": [{"input": "A mill", "output": ""}]}\n',
            {"text": "Sum it up\n\nA mill"},
        ),
        (
            "derta_malicious",
            '{"prefix": "### Instruction:\\nGo \\n\\n### Response:", "text": ""}\n{"prefix": ""}\n',
            {"text": "Go"},
        ),
        (
            "gptfuzz_responses",
            "id,question,response,label\n",
            {"text": "id", "response": "response"},
        ),
    ],
)
def test_a_recipe_reads_its_format(name: str, source: str, expected: dict[str, object]) -> None:
    assert expected in read(name, source)


def test_templates_are_filled_with_questions() -> None:
    templates = b"id,text\n0,Tell me [INSERT PROMPT HERE] now\n"
    files = {"templates.csv": templates, "questions.csv": b"where\n"}
    (filled,) = RECIPES["gptfuzz_wrapped"].read(files)
    assert filled == {"text": "Tell me where now", "goal": "where"}


def test_an_attack_is_grouped_by_the_words_of_its_goal() -> None:
    rows = [{"goal": "Go: to_the Mill!", "prompt": "Go", "response": "No"}]
    rows.append({"goal": "x", "prompt": None, "response": None})  # type: ignore[dict-item]
    files = {"a.json": json.dumps({"jailbreaks": rows}).encode()}
    (attack,) = RECIPES["jbb_artifacts"].read(files)
    assert attack["group"] == "jbb:go to the mill"

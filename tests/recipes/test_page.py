"""docs/recipes.md shows the files that these tests run, and all of them."""

import re

from tests.recipes.places import RECIPES, ROOT

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- example: examples/recipes/(\S+) -->\n```\w+\n(.*?)```\n", re.DOTALL)


def shown() -> dict[str, str]:
    """Return what the page shows of each file, by name."""
    found: dict[str, str] = {}
    for name, text in BLOCK.findall(PAGE):
        found[name] = f"{found[name]}\n{text}" if name in found else text
    return found


def without_heading(text: str) -> str:
    """Return a file without the docstring or comment that it begins with."""
    return text.split("\n\n", 1)[1]


def test_the_page_shows_every_recipe_whole() -> None:
    files = {
        path.name: without_heading(path.read_text(encoding="utf-8"))
        for path in RECIPES.iterdir()
        if path.is_file()
    }
    assert shown() == files


def test_the_page_shows_no_code_that_is_not_run() -> None:
    assert PAGE.count("```") == 2 * len(BLOCK.findall(PAGE))
    assert not re.search(r"^(    |\t)", BLOCK.sub("", PAGE), re.MULTILINE)

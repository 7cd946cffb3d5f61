"""What the README shows is what runs."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_the_example_that_the_tests_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("```python\n")[2].partition("```")[0]
    example = (ROOT / "examples" / "guard_a_model.py").read_text(encoding="utf-8")
    assert shown
    assert example.partition('"""\n\n')[2] == shown

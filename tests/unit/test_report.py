"""The page of an evaluation: whole without a network, worst sets first, nothing taken as markup."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from demur.core.readings import Array
from demur.workflows.evaluate import evaluate
from demur.workflows.evaluate_results import Evaluation
from demur.workflows.evaluate_scores import Contender
from demur.workflows.layer_values import Level
from demur.workflows.report import render, set_table, summary, worst, write_report
from demur.workflows.report_charts import Spec
from demur.workflows.suites import Suite
from tests.evaluations import (
    MODEL,
    SECRET,
    SUITE,
    contender,
    evaluation_set,
    scores_of,
)

LOADING = {"src", "href", "data", "poster", "action", "srcset"}
"""Attributes that make a browser fetch something."""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BAD_NAME = "<img src=x onerror=alert(1)>"


def result_of(*contenders: Contender, suite: Suite = SUITE) -> Evaluation:
    return evaluate(suite, [MODEL], contenders, num_draws=10)[0]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Return two detectors on three sets; the first tells its layers apart."""
    scores = scores_of(SUITE)
    layers: dict[str, Array] = {name: np.stack([of, -of], 1) for name, of in scores.items()}
    levels = (Level(1, "last block_out"), Level(2, "last block_out"))
    first = Contender(
        "linear", "tiny", scores, contender(scores).thresholds, (2.0, -2.0), "v1", levels, layers
    )
    return result_of(first, contender(scores_of(SUITE, seed=1), name="second"))


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return render(evaluation)


class Elements(HTMLParser):
    """Collects the elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def charts_of(page: str) -> list[Spec]:
    specs = [attributes.get("data-spec") for _, attributes in Elements(page).found]
    return [json.loads(spec) for spec in specs if spec is not None]


def titles(page: str) -> list[str]:
    content, _, _ = page.partition("<script>")
    return [unescape(title) for title in re.findall(r"<h[12]>(.*?)</h[12]>", content)]


def encoding_of(spec: Spec, channel: str) -> Spec:
    """Return what the first layer of a chart, or the chart, says of a channel."""
    first: Spec = spec.get("layer", [spec])[0]["encoding"].get(channel, {})
    return first


def test_no_element_loads_anything(page: str) -> None:
    elements = Elements(page).found
    assert {tag for tag, _ in elements} >= {"script", "style", "table"}
    assert not {tag for tag, _ in elements} & {"link", "img", "iframe", "object", "base"}
    assert not [of for _, attributes in elements for of in attributes if of in LOADING]
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert not re.search(r"url\(|@import", "".join(styles))


def test_charts_hold_their_own_numbers(page: str) -> None:
    for spec in charts_of(page):
        parts = [spec, *spec.get("layer", [])]
        sources = [part["data"] for part in parts if "data" in part]
        assert sources
        known = spec.get("datasets", {})
        assert all("values" in source or source["name"] in known for source in sources)


def test_the_page_has_all_its_sections(page: str) -> None:
    assert titles(page) == [
        "Evaluation on mine",
        "Means over sets",
        "Worst sets first",
        "ROC at low false-positive rates",
        "Unsafe prompts caught, by set",
        "Safe prompts flagged, by set",
        "How scores are spread",
        "Layers",
        "Calibration",
        "Every set",
        "Notes",
    ]


def test_false_positive_rates_are_on_a_log_scale(page: str) -> None:
    scales = [
        encoding["scale"]
        for spec in charts_of(page)
        if (encoding := encoding_of(spec, "x")).get("field") == "fpr"
    ]
    assert [(scale["type"], scale["domain"]) for scale in scales] == [("log", [0.001, 1])]


def test_the_page_holds_no_text_of_a_prompt(page: str) -> None:
    assert SECRET not in page


def test_worst_sets_come_first(evaluation: Evaluation) -> None:
    first = evaluation.detectors[0]
    found = worst(first)
    rates = {
        of.name: at.flagged_safe.value
        for of in first.sets
        if (at := of.at_thresholds[0]).flagged_safe is not None
    }
    assert [name for name, _, _ in found["flagged_safe"]] == sorted(
        rates, key=lambda name: -rates[name]
    )
    recalls = {
        of.name: at.recall.value
        for of in first.sets
        if (at := of.at_thresholds[0]).recall is not None
    }
    assert [name for name, _, _ in found["recall"]] == sorted(
        recalls, key=lambda name: recalls[name]
    )


def test_bars_are_in_the_order_of_the_worst(page: str, evaluation: Evaluation) -> None:
    orders = [
        encoding["sort"]
        for spec in charts_of(page)
        if "sort" in (encoding := encoding_of(spec, "y"))
    ]
    found = worst(evaluation.detectors[0])
    assert orders == [
        [name for name, _, _ in found["recall"]],
        [name for name, _, _ in found["flagged_safe"]],
    ]


def test_the_table_of_sets_begins_with_the_lowest_auroc(evaluation: Evaluation) -> None:
    table = set_table(evaluation)
    areas = {of.name: of.auroc.value for of in evaluation.detectors[0].sets if of.auroc is not None}
    assert [of.name for of in table.sets] == [
        *sorted(areas, key=lambda name: areas[name]),
        "plain",
    ]
    assert [label for label, _ in table.sets[0].rows] == ["linear", "second"]


def test_columns_without_a_number_are_left_out(evaluation: Evaluation) -> None:
    columns = set_table(evaluation).columns
    assert "recall at 1% FPR" in columns
    assert "recall at 0.1% FPR" not in columns


def test_a_clear_difference_is_marked_as_better_or_worse() -> None:
    poor, good = contender(scores_of(SUITE, gain=0)), contender(scores_of(SUITE, gain=9), name="b")
    for contenders, expected in (((poor, good), "better"), ((good, poor), "worse")):
        (table,) = summary(result_of(*contenders))
        place = [column.split(" (")[0] for column in table.columns].index("AUROC")
        (_, _, of_first), (_, _, of_second), *_ = table.rows
        assert (of_first[place].verdict, of_second[place].verdict) == ("", expected)


def test_more_safe_prompts_flagged_is_worse() -> None:
    scores = scores_of(SUITE)
    more = {name: of + 2 for name, of in scores.items()}
    (table,) = summary(result_of(contender(scores), contender(more, name="b")))
    place = [column.split(" (")[0] for column in table.columns].index("safe flagged")
    assert table.rows[1][2][place].verdict == "worse"


def test_one_label_makes_a_page_without_curves_that_need_two() -> None:
    suite = Suite("benign", (evaluation_set("plain", 0, 50),))
    page = render(result_of(contender(scores_of(suite)), suite=suite))
    assert "no unsafe prompts" in page
    assert "ROC at low false-positive rates" not in titles(page)
    assert "Safe prompts flagged, by set" in titles(page)


def test_names_are_never_taken_as_markup() -> None:
    suite = Suite(BAD_NAME, (evaluation_set(BAD_NAME, 5, 5),))
    page = render(result_of(contender(scores_of(suite), name="</script><b>"), suite=suite))
    assert not {tag for tag, _ in Elements(page).found} & {"img", "b"}
    assert BAD_NAME in unescape(page)


def test_the_page_is_written_whole(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text().endswith("</html>")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_every_chart(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=5000", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    charts = [of for _, of in Elements(done.stdout).found if "data-spec" in of]
    drawn = [tag for tag, of in Elements(done.stdout).found if tag == "svg" and "viewbox" in of]
    assert len(drawn) == len(charts) >= 6

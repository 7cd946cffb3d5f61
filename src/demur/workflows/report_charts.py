"""The charts of a report, as Vega-Lite specifications; altair and vl-convert stand here alone.

Text, grid, rules, intervals (a style of that name) and background have no colours here: the page
sets them, light or dark.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from demur.workflows.evaluate_results import Estimate, Histogram, ScorerResult, SetResult

Spec = dict[str, Any]
Point = Mapping[str, object]

SAFE, UNSAFE = "#0ea5e9", "#f97316"
PALETTE = (
    "#3b82f6", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#06b6d4", "#84cc16", "#ef4444",
)  # fmt: skip
CONTROL = "#94a3b8"
LOWEST_FPR = 1e-3
"""Where the axis of a ROC curve begins."""
LONG_LABEL = 24
"""Characters of a scorer's name, of which no two stand side by side in a legend."""
ROW_HEIGHT, SET_HEIGHT = 11, 20
"""Of a bar, and the least of a set, in pixels."""


@cache  # bundling takes seconds
def script() -> str:
    """Return the JavaScript that draws specifications, whole: a page with it needs no network."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def roc(scorers: Sequence[ScorerResult], split: str) -> Spec:
    """Draw recall over false-positive rates from 0.1% on; dots are the frozen thresholds."""
    curves = [
        {"scorer": of.label, "fpr": fpr, "recall": tpr}
        for of in scorers
        for curve in of.curves.roc
        if curve.split == split
        for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True)
    ]
    dots = [
        {"scorer": of.label, "fpr": max(LOWEST_FPR, safe.value), "recall": unsafe.value}
        for of in scorers
        for whole in of.splits
        if whole.split == split
        and (safe := rate_of(whole, "flagged_safe")) is not None
        and (unsafe := rate_of(whole, "recall")) is not None
    ]  # fmt: skip
    x = alt.X("fpr:Q").title("false-positive rate").axis(format="~%", tickCount=4)
    x = x.scale(type="log", domain=[LOWEST_FPR, 1], clamp=True)
    y = alt.Y("recall:Q").title("recall").axis(format="~%").scale(domain=[0, 1])
    lines = _chart(curves).mark_line(interpolate="step-after", strokeWidth=2)
    points = _chart(dots).mark_point(filled=True, size=90, opacity=1)
    tooltip = [alt.Tooltip("scorer:N"), _share("fpr"), _share("recall")]
    return _sized(
        lines.encode(x=x, y=y, color=_colour(scorers))
        + points.encode(x=x, y=y, color=_colour(scorers), tooltip=tooltip),
        height=320,
    )


def spread(scorer: ScorerResult, histogram: Histogram) -> Spec:
    """Draw how the scores of safe and unsafe prompts are spread, with the default threshold."""
    rows = [
        {"from": low, "to": high, "share": share, "label": label}
        for label, shares in (("safe", histogram.safe), ("unsafe", histogram.unsafe))
        for low, high, share in zip(histogram.edges[:-1], histogram.edges[1:], shares, strict=False)
    ]
    colour = alt.Color("label:N").title(None).legend(orient="top")
    bars = (
        _chart(rows)
        .mark_bar(opacity=0.6, binSpacing=0)
        .encode(
            x=alt.X("from:Q").title("score").bin("binned"),
            x2="to:Q",
            y=alt.Y("share:Q").title("share").axis(format="~%").stack(False),
            color=colour.scale(domain=["safe", "unsafe"], range=[SAFE, UNSAFE]),
            tooltip=[alt.Tooltip("label:N"), alt.Tooltip("from:Q", format=".3g"), _share("share")],
        )
    )
    if scorer.default_threshold is None:
        return _sized(bars, height=180)
    threshold = {"threshold": scorer.default_threshold}
    rule = _chart([threshold]).mark_rule(strokeDash=[5, 3], strokeWidth=1.5)
    tooltip = [alt.Tooltip("threshold:Q", format=".4g")]
    return _sized(bars + rule.encode(x="threshold:Q", tooltip=tooltip), height=180)


def layers(scorers: Sequence[ScorerResult], split: str) -> Spec | None:
    """Draw the AUROC of each layer by itself; None if no scorer tells its layers apart."""
    rows = [
        {"scorer": of.label, "read": point.read, "layer": point.layer, "auroc": point.auroc}
        for of in scorers
        for point in of.curves.layers
        if point.split == split
    ]
    if not rows:
        return None
    chart = _chart(rows).mark_line(point=True, strokeWidth=2)
    encoded = chart.encode(
        x=alt.X("layer:Q").title("layer (decoder block from 0)").axis(tickMinStep=1),
        y=alt.Y("auroc:Q").title("AUROC").scale(zero=False),
        color=_colour(scorers),
        detail="read:N",
        tooltip=[
            alt.Tooltip("scorer:N"),
            alt.Tooltip("read:N"),
            alt.Tooltip("layer:Q"),
            alt.Tooltip("auroc:Q", format=".4f"),
        ],
    )
    return _sized(encoded, height=260)


def reliability(scorers: Sequence[ScorerResult], split: str) -> Spec | None:
    """Draw what comes of predicted probabilities; None if no scorer has any."""
    rows = [
        {"scorer": of.label, "predicted": predicted, "observed": observed, "mass": mass}
        for of in scorers
        for bins in of.curves.reliability
        if bins.split == split
        for predicted, observed, mass in zip(bins.predicted, bins.observed, bins.mass, strict=True)
    ]
    if not rows:
        return None
    diagonal = _chart([{"x": 0, "y": 0}, {"x": 1, "y": 1}]).mark_line(
        strokeDash=[4, 4], color=CONTROL, strokeWidth=1
    )
    x = alt.X("predicted:Q").title("predicted probability").scale(domain=[0, 1])
    y = alt.Y("observed:Q").title("share that is unsafe").scale(domain=[0, 1])
    chart = _chart(rows).mark_line(point=True, strokeWidth=2)
    tooltip = [alt.Tooltip("scorer:N"), _share("predicted"), _share("observed"), _share("mass")]
    return _sized(
        diagonal.encode(x="x:Q", y="y:Q")
        + chart.encode(x=x, y=y, color=_colour(scorers), tooltip=tooltip),
        height=300,
    )


def caught(scorers: Sequence[ScorerResult]) -> Spec | None:
    """Draw the recall of each set at the default thresholds, the least caught first."""
    return _by_set(scorers, "recall", "unsafe prompts caught", is_good=True)


def flagged(scorers: Sequence[ScorerResult]) -> Spec | None:
    """Draw the flagged share of each set's safe prompts, the most flagged first."""
    return _by_set(scorers, "flagged_safe", "safe prompts flagged", is_good=False)


def rate_of(result: SetResult, measure: str) -> Estimate | None:
    """Return a rate of a set at the default threshold; None where there is none."""
    if not result.at_thresholds:
        return None
    found: Estimate | None = getattr(result.at_thresholds[0], measure)
    return found


def _by_set(
    scorers: Sequence[ScorerResult], measure: str, title: str, *, is_good: bool
) -> Spec | None:
    rated = [
        (of, of_set, rate)
        for of in scorers
        for of_set in of.sets
        if (rate := rate_of(of_set, measure)) is not None
    ]
    if not rated:
        return None
    rows = [
        {
            "set": of_set.name,
            "scorer": of.label,
            "rate": rate.value,
            "low": rate.interval[0] if rate.interval else rate.value,
            "high": rate.interval[1] if rate.interval else rate.value,
            "prompts": of_set.num_unsafe if is_good else of_set.num_safe,
        }
        for of, of_set, rate in rated
    ]
    first = {of_set.name: rate.value for of, of_set, rate in rated if of is scorers[0]}
    order = sorted(first, key=lambda name: first[name], reverse=not is_good)
    y = alt.Y("set:N").title(None).sort(order).axis(labelLimit=240, ticks=False, domain=False)
    offset = alt.YOffset("scorer:N").sort([of.label for of in scorers]).scale(paddingInner=0.15)
    highs = [rate.interval[1] if rate.interval else rate.value for _, _, rate in rated]
    end = 1.0 if is_good else max(highs)
    x = alt.X("rate:Q").title(title).axis(format="~%", orient="top", tickCount=10)
    x = x.scale(domain=[0, end], nice=True)
    tooltip = [
        alt.Tooltip("set:N"),
        alt.Tooltip("scorer:N"),
        _share("rate"),
        _share("low"),
        _share("high"),
        alt.Tooltip("prompts:Q"),
    ]
    bars = _chart(rows).mark_bar(opacity=0.75)
    ends = _chart(rows).mark_bar(style="interval", height=1.5)
    chart = bars.encode(x=x, y=y, yOffset=offset, color=_colour(scorers), tooltip=tooltip)
    both = chart + ends.encode(x="low:Q", x2="high:Q", y=y, yOffset=offset)
    band = max(SET_HEIGHT, ROW_HEIGHT * len(scorers) + 5)
    return _sized(both, height=band * len(order))


def _chart(rows: Sequence[Point]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _sized(chart: alt.Chart | alt.LayerChart, *, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    return spec


def _share(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", format=".2%")


def _colour(scorers: Sequence[ScorerResult]) -> alt.Color:
    """Return the colours of scorers: the same in every chart, and grey for controls."""
    colours, number = [], 0
    for scorer in scorers:
        colours.append(CONTROL if scorer.model is None else PALETTE[number % len(PALETTE)])
        number += scorer.model is not None
    columns = 2 if max(len(scorer.label) for scorer in scorers) <= LONG_LABEL else 1
    legend = alt.Legend(orient="top", title=None, columns=columns, labelLimit=340)
    return (
        alt.Color("scorer:N")
        .scale(domain=[scorer.label for scorer in scorers], range=colours)
        .legend(legend if len(scorers) > 1 else None)
    )

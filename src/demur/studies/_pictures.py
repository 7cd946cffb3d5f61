"""Draws plots into PNG files with matplotlib, which only this file imports."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from demur.core.errors import DataError
from demur.studies._study import HeatMap, Plot

DPI = 130
MARKERS = "osD^vP*X<>"


def draw(plots: Sequence[Plot | HeatMap], out: Path) -> None:
    """Draw each plot into `NAME.png` of a folder.

    Raises:
        DataError: Two plots have the same name.
    """
    names = [plot.name for plot in plots]
    if len(set(names)) < len(names):
        raise DataError(f"two plots have one name: {names}")
    for plot in plots:
        figure = _map(plot) if isinstance(plot, HeatMap) else _series(plot)
        figure.savefig(out / f"{plot.name}.png", dpi=DPI)


def _series(plot: Plot) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw_series = _bars if plot.kind == "bar" else _lines
    draw_series(axes, plot)
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _lines(axes: Axes, plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        axes.errorbar(
            series.x,
            series.y,
            yerr=series.error or None,
            label=series.label,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            capsize=2,
            linewidth=1.5,
        )
    if plot.is_log_x:
        axes.set_xscale("log")
    elif all(float(x).is_integer() for series in plot.series for x in series.x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(axes: Axes, plot: Plot) -> None:
    names = list(dict.fromkeys(str(x) for series in plot.series for x in series.x))
    width = 0.8 / len(plot.series)
    for number, series in enumerate(plot.series):
        places = np.array([names.index(str(x)) for x in series.x], float)
        places += (number - (len(plot.series) - 1) / 2) * width
        axes.bar(places, series.y, width, yerr=series.error or None, label=series.label, capsize=2)
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 6 else 0, ha="right")


def _map(plot: HeatMap) -> Figure:
    size = (2.5 + 0.9 * len(plot.columns), 1.6 + 0.32 * len(plot.rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    values = np.array([[np.nan if v is None else v for v in row] for row in plot.values])
    axes.imshow(values, aspect="auto", cmap=colormaps["RdYlGn"], vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(plot.columns)), plot.columns, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(plot.rows)), plot.rows, fontsize=8)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.set_title(plot.title)
    return figure

"""The plots of a sweep's report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quark_jax.evaluation.report import Metric
from quark_jax.files import replacing
from quark_jax.sweep.words import PLACES

_COLOURS = ("#4753d2", "#d9480f", "#2b8a3e", "#ae3ec9", "#c2255c", "#0c8599")
_MARKERS = "osD^vP"
Points = Mapping[str, Mapping[str, Any]]


def write(
    folder: Path,
    series: Mapping[str, Sequence[str]],
    points: Points,
    metrics: Mapping[str, Metric],
) -> list[tuple[str, str]]:
    """Write the PNGs that there is something to show in; the name of each, and what it shows.

    `points`: numbers of each point by name, as the report has them.
    """
    told = {
        "metrics.png": ("Frames a second against each metric", _metrics(series, points, metrics)),
        "language.png": (
            "Tokens a second against the language model's loss in nats per second of audio",
            _language(series, points),
        ),
        "segments.png": ("Lengths of the segments of dynamic rates", _segments(points)),
        "words.png": (
            "Frames a second at the edges of words, inside and in silence",
            _words(points),
        ),
    }
    shown = []
    for name, (what, figure) in told.items():
        if figure is not None:
            with replacing(folder / name) as beside:
                figure.savefig(str(beside), dpi=80)
            shown.append((name, what))
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier report
    return shown


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _metrics(series: Mapping[str, Sequence[str]], points: Points, metrics: Mapping[str, Metric]):
    if not metrics:
        return None
    columns = math.ceil(math.sqrt(len(metrics)))
    rows = -(-len(metrics) // columns)
    figure = _figure(3.8 * columns, 2.9 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (key, metric) in zip(grid.flat, metrics.items(), strict=False):
        _lines(
            axes,
            series,
            {
                name: (point["means"]["frame_rate"], point["means"][key])
                for name, point in points.items()
                if key in point["means"]
            },
        )
        _doublings(axes, "frames/s", 6.25)
        axes.set_title(metric.heading)
    for axes in list(grid.flat)[len(metrics) :]:
        axes.set_visible(False)
    _legend(figure, grid[0, 0])
    return figure


def _language(series: Mapping[str, Sequence[str]], points: Points):
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    found = {
        name: (point["tokens"], point["lm"]["nats_per_second"]) for name, point in points.items()
    }
    _lines(axes, series, found)
    for name, place in found.items():
        axes.annotate(name, place, (5, -9), textcoords="offset points", fontsize=7, color="#555")
    _doublings(axes, "tokens/s", 25.0)
    axes.set_ylabel("held-out nats per second of audio")
    _legend(figure, axes)
    return figure


def _segments(points: Points):
    dynamic = {name: point for name, point in points.items() if point["segments"]}
    if not dynamic:
        return None
    figure = _figure(3.2 * len(dynamic), 2.8)
    grid = figure.subplots(1, len(dynamic), squeeze=False, sharey=True)[0]
    for axes, (name, point) in zip(grid, dynamic.items(), strict=True):
        counts = np.array(point["segments"])
        axes.bar(np.arange(1, len(counts) + 1), counts / counts.sum(), color=_COLOURS[0])
        axes.set(xlabel=f"frames at {point['codec']['frame_rate']:g} Hz")
        axes.set_title(name, fontsize=10)
        _bare(axes)
    grid[0].set_ylabel("share of segments")
    return figure


def _words(points: Points):
    told = {name: point["words"]["places"] for name, point in points.items() if point["words"]}
    if not told:
        return None
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    width = 0.8 / len(told)
    for number, (name, places) in enumerate(told.items()):
        rates = [places[place]["frames"] / max(places[place]["seconds"], 1e-9) for place in PLACES]
        offset = (number - (len(told) - 1) / 2) * width
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(np.arange(len(PLACES)) + offset, rates, width * 0.92, label=name, color=colour)
    axes.set(xticks=range(len(PLACES)), xticklabels=PLACES, ylabel="frames/s")
    _bare(axes)
    _legend(figure, axes)
    return figure


def _lines(
    axes: Any, series: Mapping[str, Sequence[str]], places: Mapping[str, tuple[float, float]]
) -> None:
    """Each of the series as a line through those of its points that have a place; points of no
    series by themselves."""
    joined = {name for names in series.values() for name in names}
    lines = {**series, "": [name for name in places if name not in joined]}
    for number, (label, names) in enumerate(lines.items()):
        found = [places[name] for name in names if name in places]
        if not found:
            continue
        axes.plot(
            *zip(*found, strict=True),
            linestyle="-" if label else "",
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            label=label or "others",
            linewidth=1.4,
            markersize=5,
            alpha=0.85,
        )


def _doublings(axes: Any, label: str, tick: float) -> None:
    """An axis on which each doubling is as wide, with ticks at those of `tick`."""
    axes.set_xscale("log", base=2)
    low, high = np.log2(np.array(axes.get_xlim()) / tick)
    ticks = tick * 2.0 ** np.arange(np.ceil(low), np.floor(high) + 1)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xlabel(label)
    _bare(axes)


def _bare(axes: Any) -> None:
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() // 2.8))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )

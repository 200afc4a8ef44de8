"""Curves of runs, over their steps, in one picture.

    python -m quark_jax.training.curves runs/a runs/b --out curves.png --names mel heldout/stoi

draws the named scalars of metrics.jsonl, or all, one panel each; those that differ only after the
last slash (the layers of a quantiser) share a panel. Pale: as logged; full: the mean of each
twentieth of a run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from quark_jax.commands import guarded
from quark_jax.errors import UserError
from quark_jax.files import replacing
from quark_jax.training.metrics import read_metrics

Rows = Sequence[Mapping[str, float]]
_COLUMNS = 3
_PARTS = 20  # of a run, each of which is averaged
_SPAN = 1_000  # from the lowest value to the highest: a panel of more is logarithmic


def draw(path: str | PathLike, runs: Mapping[str, Rows], names: Sequence[str] = ()) -> None:
    """Write `figure` as a PNG."""
    with replacing(path) as beside:
        figure(runs, names).savefig(str(beside), dpi=80)


def figure(runs: Mapping[str, Rows], names: Sequence[str] = ()):
    """A Matplotlib figure of the scalars `names` (all, if there are none) of `runs` by name, each
    the rows that `read_metrics` gives.

    Raises UserError where no run has a scalar of such a name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(runs, names)
    rows = -(-len(panels) // _COLUMNS)
    drawn = Figure(figsize=(5 * _COLUMNS, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(rows, _COLUMNS, squeeze=False).flat
    for axis, (title, scalars) in zip(axes, panels.items(), strict=False):
        axis.set(title=title, xlabel="step")
        for run, values in runs.items():
            for scalar in scalars:
                label = "/".join(
                    [run] * (len(runs) > 1) + [scalar[len(title) + 1 :]] * (scalar != title)
                )
                _curve(axis, values, scalar, label)
        values = np.concatenate([line.get_ydata() for line in axis.lines] or [np.ones(1)])
        if values.min() > 0 and values.max() > _SPAN * values.min():
            axis.set_yscale("log")  # else a run that went astray leaves the others flat
        if len(runs) > 1 or scalars != [title]:
            axis.legend(fontsize="x-small")
    for axis in list(axes)[len(panels) :]:
        axis.set_visible(False)
    return drawn


def _panels(runs: Mapping[str, Rows], names: Sequence[str]) -> dict[str, list[str]]:
    """The scalars of each panel, by its title."""
    known = {name: None for rows in runs.values() for row in rows for name in row if name != "step"}
    layers = {name: name.rpartition("/")[0] for name in known if name.rpartition("/")[2].isdigit()}
    panels: dict[str, list[str]] = {}
    for name in known:
        panels.setdefault(layers.get(name, name), []).append(name)
    for name in names:
        if name in known:  # one layer
            panels[name] = [name]
        if name not in panels:
            raise UserError(f"{name}: no such scalar; the runs have {', '.join(sorted(panels))}")
    return {name: panels[name] for name in names} if names else panels


def _curve(axis, rows: Rows, scalar: str, label: str) -> None:
    points = np.array([(row["step"], row[scalar]) for row in rows if scalar in row], float)
    if not len(points):
        return
    (line,) = axis.plot(*points.T, linewidth=0.5, alpha=0.35)
    parts = [part.mean(axis=0) for part in np.array_split(points, min(_PARTS, len(points)))]
    axis.plot(*np.stack(parts).T, color=line.get_color(), linewidth=1.5, label=label)


def _run(options: argparse.Namespace) -> None:
    runs = {}
    for folder in options.runs:
        runs[folder.name] = read_metrics(folder)
        if not runs[folder.name]:
            raise UserError(f"{folder}: holds no metrics.jsonl with rows; give a run's workdir")
    draw(options.out, runs, options.names)
    print(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code. Bad input is one line on stderr and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m quark_jax.training.curves",
        description="Draw the curves of training runs.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="workdirs of runs")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png")
    parser.add_argument("--names", nargs="+", default=(), help="scalars to draw (default: all)")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())

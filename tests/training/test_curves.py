"""The picture of runs: what is drawn, from what stands in their metrics."""

import json

import numpy as np
import pytest
from matplotlib import pyplot

from quark_jax.training.curves import figure, main
from quark_jax.training.metrics import read_metrics


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": 0, "heldout/stoi": 0.1}]
    rows += [{"step": i, "mel": 5 / i, "use/0": 0.5, "use/1": 0.2} for i in range(1, 50)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ink(path) -> float:
    return float(np.mean(pyplot.imread(path)[..., :3] < 0.9))


def test_all_or_named_scalars_are_drawn(run, tmp_path, capsys):
    everything, one = tmp_path / "all.png", tmp_path / "one.png"
    assert main([str(run), "--out", str(everything)]) == 0
    assert main([str(run), str(run), "--out", str(one), "--names", "use"]) == 0
    assert ink(one) > 0.005 and pyplot.imread(one).shape == pyplot.imread(everything).shape
    assert ink(everything) > 1.2 * ink(one)  # three panels of a row, not one
    layer = tmp_path / "layer.png"
    assert main([str(run), "--out", str(layer), "--names", "use/1"]) == 0
    assert 0.003 < ink(layer) < ink(one)


def test_a_run_that_went_astray_does_not_flatten_the_others(run, tmp_path):
    wild = tmp_path / "wild"
    wild.mkdir()
    rows = [{"step": i, "mel": 5.0 if i < 20 else 1e7} for i in range(1, 50)]
    (wild / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = {"run": read_metrics(run), "wild": read_metrics(wild)}
    assert figure(runs, ["mel"]).axes[0].get_yscale() == "log"
    assert figure({"run": runs["run"]}, ["mel"]).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "loss"], "no such scalar; the runs have heldout/stoi, mel, use"),
        ([], "holds no"),
    ],
)
def test_what_is_not_there_is_named(run, tmp_path, capsys, arguments, message):
    if not arguments:
        (run / "metrics.jsonl").unlink()
    assert main([str(run), "--out", str(tmp_path / "x.png"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "x.png").exists()

"""`quark aot`, from the config on the command line to the exit code."""

import json

import pytest

from quark_jax.cli import main

CONFIG = "configs/lm/published.py:base"
# The published step but for its lengths, on which the time to compile depends.
SHORT = [
    "--config.data.packing.positions=256",
    "--config.data.packing.sequences=1",
    "--config.data.batch_size=16",
    "--config.lm.text_channels=0",
    "--config.lm.dtype=bfloat16",
    "--config.lm.scan=True",
    "--config.lm.remat=full",
    "--seconds=1",
    "--mesh=data=16,fsdp=1",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e"], "is no topology; write chip and sides"),
        (["--topology", "v9:4x4"], "knows none of that name"),
        (["--topology", "v5e:3x5"], "knows none of that name"),
        (["--topology", "v5e:4x4", "--config.lm.wide=1"], "no field"),
        (["--topology", "v5e:4x4", "--mesh", "data=3"], "does not fit 16 devices"),
        (["--topology", "v5e:4x4", "--mesh", "rows=3"], "is not as data=-1,fsdp=16"),
        (["--topology", "v5e:4x4", "--program", "tokenise"], "needs the config of a codec"),
        (
            ["--topology", "v5e:4x4", "--slices", "2", "--mesh", "data=1,fsdp=32"],
            "mesh.data: 1 does not divide over 2 slices",
        ),
        (["--topology", "v5e:4x4", "--config.data.batch_size=2"], "batch of 8: does not divide"),
        (["--topology", "v5e:4x4", "--json", "nowhere/x.json"], "does not exist"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(arguments, message, capsys):
    try:
        code = main(["aot", "--config", CONFIG, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    told = capsys.readouterr().err
    assert code == 2 and message in told and len(told.splitlines()) == 1


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    assert main(["aot", "--config", CONFIG, "--topology", "v5e:4x4"]) == 2
    assert "pip install -e '.[aot]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_step_of_base_compiles_for_sixteen_chips(tmp_path, capsys):
    file = tmp_path / "base.json"
    arguments = ["--topology", "v5e:4x4", "--config", CONFIG, *SHORT, "--json", str(file)]
    assert main(["aot", *arguments]) == 0
    assert "fits" in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["chip"] == "v5e" and report["mesh"]["data"] == 16
    # Parameters and two moments, float32, on every chip; the text and audio encoders do not count.
    assert 3 * 4 * 220e6 < report["arguments"] < 3 * 4 * 240e6
    # Each layer's gradients are added over all chips: bfloat16, twice round the ring.
    kinds = report["collectives"]
    assert kinds["all-reduce"][1] == pytest.approx(2 * 2 * 222e6 * 15 / 16, rel=0.05)
    assert report["kernel_flops"] > 0 and report["cycles"] > 0
    assert report["recomputed"]["dot_general"] > 0
    assert 0 < report["bounds"]["estimate_mfu"] < report["bounds"]["mfu"] < 1

"""Runs that are killed, on one device and on eight, go on as if nothing had been."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser
from quark_jax.training import codec as codec_training
from quark_jax.training import lm as lm_training
from quark_jax.training.metrics import read_metrics

KINDS = ("codec", "lm")
Moment = Callable[[], bool]


def written(workdir: Path, step: int) -> Moment:
    """That `step` stands in metrics.jsonl."""
    return lambda: any(row["step"] == step for row in read_metrics(workdir))


def saving(workdir: Path) -> Moment:
    """That a checkpoint after the first is being written, and is not complete."""
    folder = workdir / "checkpoints"
    return lambda: any(any(folder.glob(f"{step}.*tmp*")) for step in (8, 12))


@pytest.fixture
def interrupted(trainers, wait_until) -> Callable[..., None]:
    """interrupted(plan, moments, devices=1): run `plan`, killed at each of `moments` and begun
    again, then to its end."""

    def run(plan: Sequence[dict], moments: Sequence[Moment], *, devices: int = 1) -> None:
        for moment in moments:
            process = trainers.start(plan, devices=devices)
            wait_until(moment, process, trainers.log.read_text)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        trainers.run(plan, devices=devices)

    return run


def late_step() -> int:
    """A step after the first checkpoint, another one in every run of the tests."""
    step = random.SystemRandom().randint(5, 11)
    print(f"to be killed at step {step}")
    return step


def compare(a: Path, b: Path, *, steps: int = 12, until: int | None = None) -> tuple[float, float]:
    """How far two runs are apart: the largest difference of their losses up to step `until`,
    absolute, and relative to the loss. Both hold the rows of the same steps in the same order, none
    twice or left out."""
    left, right = read_metrics(a), read_metrics(b)
    rows = [(row["step"], sorted(row)) for row in left]
    assert rows == [(row["step"], sorted(row)) for row in right]
    assert not any(row.get("skipped_steps") for row in (*left, *right))
    held_out = [step for step, names in rows if "loss" not in names]
    assert held_out == list(range(0, steps + 1, 6))
    assert [step for step, names in rows if "loss" in names] == list(range(1, steps + 1))
    losses = [
        (x["loss"], y["loss"])
        for x, y in zip(left, right, strict=True)
        if "loss" in x and (until is None or x["step"] <= until)
    ]
    return (
        max(abs(x - y) for x, y in losses),
        max(abs(x - y) / abs(x) for x, y in losses),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_killed_and_resumed_is_uninterrupted(interrupted, plan, small_run, tmp_path):
    codec, lm = tmp_path / "codec", tmp_path / "lm"
    # The first one before there is a checkpoint.
    moments = [written(codec, 1), saving(codec), written(lm, late_step())]
    interrupted([plan("codec", codec), plan("lm", lm)], moments)
    for workdir in (codec, lm):
        absolute, _ = compare(small_run / workdir.name, workdir)
        print(f"{workdir.name}: losses differ by at most {absolute:.1e} after resuming")
        assert absolute <= 1e-6
        assert files(workdir / "model") == files(small_run / workdir.name / "model")


def test_eight_devices_are_one(small_run, eight):
    """The codec until discriminators have taught it twice: learning multiplies the difference
    in the last digits, and sooner or later one vector that is about as near to two codes gets the
    other one."""
    for kind, until in {"codec": 7, "lm": None}.items():
        _, relative = compare(small_run / kind, eight / kind, until=until)
        print(f"{kind}: losses of 8 devices and of 1 differ by at most {relative:.1e} of the loss")
        assert relative <= 1e-4


@pytest.mark.slow
def test_eight_devices_are_one_for_the_codec_of_the_demo(trainers, tmp_path):
    """With batches over all devices, for as few steps and the same reason."""
    for devices in (1, 8):
        plan = [{"kind": "demo", "workdir": str(tmp_path / str(devices)), "run": {"steps": 6}}]
        trainers.run(plan, devices=devices)
    _, relative = compare(tmp_path / "1", tmp_path / "8", steps=6)
    print(f"losses of 8 devices and of 1 differ by at most {relative:.1e} of the loss")
    assert relative <= 1e-4


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted_on_eight_devices(
    interrupted, plan, small, eight, tmp_path
):
    codec, lm = tmp_path / "codec", tmp_path / "lm"
    plans = [plan("codec", codec, mesh=small.SPLIT), plan("lm", lm, mesh=small.SPLIT)]
    interrupted(plans, [written(codec, late_step()), saving(lm)], devices=8)
    for workdir in (codec, lm):
        absolute, _ = compare(eight / workdir.name, workdir)
        print(f"{workdir.name}: losses differ by at most {absolute:.1e} after resuming")
        assert absolute <= 1e-6


@pytest.mark.slow
def test_a_run_moves_to_another_mesh_and_is_made_longer(trainers, plan, small_run, tmp_path):
    begun = plan("lm", tmp_path / "lm", run={"steps": 6})
    trainers.run([begun], devices=8)
    trainers.run([plan("lm", tmp_path / "lm")], devices=1)
    assert compare(small_run / "lm", tmp_path / "lm")[1] <= 1e-4


@pytest.fixture
def again(small, small_run, tmp_path) -> Callable:
    """again(kind, change): that finished run once more, its config changed, in a copy."""
    made = (str(small_run / "codec/model/codec"), str(small_run / "tokens"))
    configs = {"codec": small.codec_config(), "lm": small.lm_config(*made)}
    trainers = {"codec": codec_training.train, "lm": lm_training.train}

    def run(kind: str, change: Callable = lambda config: config):
        shutil.copytree(small_run / kind, tmp_path / kind)
        return trainers[kind](change(configs[kind]), tmp_path / kind)

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_left_as_it_is(again, small_run, tmp_path, kind):
    result = again(kind)
    assert files(tmp_path / kind) == files(small_run / kind)
    tokeniser = result if kind == "codec" else result.tokeniser
    assert tokeniser.weights_hash == Tokeniser.load(small_run / "codec/model/codec").weights_hash


@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        (
            "codec",
            lambda c: replace(c, optimiser=replace(c.optimiser, peak=1.0, clip=1.0)),
            "optimiser.clip, optimiser.peak",
        ),
        (
            "codec",
            lambda c: replace(c, codec=replace(c.codec, name="other")),
            "codec.name",
        ),
        ("codec", lambda c: replace(c, run=replace(c.run, seed=2)), "run.seed"),
        ("lm", lambda c: replace(c, lm=replace(c.lm, width=64)), "lm.width"),
        ("lm", lambda c: replace(c, data=replace(c.data, batch_size=4)), "data.batch_size"),
    ],
)
def test_another_config_is_refused(again, small_run, tmp_path, kind, change, names):
    with pytest.raises(UserError, match=f"begun with another {names};") as refusal:
        again(kind, change)
    assert str(tmp_path / kind) in str(refusal.value)
    assert files(tmp_path / kind) == files(small_run / kind)


def test_what_changes_no_number_may_change(again, small_run, tmp_path):
    def change(config):
        run = replace(config.run, log_every=7, eval_every=0, save_every=1, keep=1)
        return replace(config, run=run, data=replace(config.data, workers=1))

    again("lm", change)
    assert read_metrics(tmp_path / "lm") == read_metrics(small_run / "lm")

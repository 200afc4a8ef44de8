"""What a run writes down, also after it was cut off."""

import json

import numpy as np
import pytest

from quark_jax.training.metrics import Clip, MetricWriter, Picture, read_metrics


def steps(workdir) -> list[int]:
    return [row["step"] for row in read_metrics(workdir)]


def write(workdir, numbers, resumed=None) -> None:
    writer = MetricWriter(workdir, resumed=resumed)
    for number in numbers:
        writer.write(number, {"loss": number / 3})
    writer.close()


def test_rows_come_back_as_they_were(tmp_path):
    write(tmp_path / "run", range(4))
    assert read_metrics(tmp_path / "run") == [{"step": i, "loss": i / 3} for i in range(4)]
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_clips_and_pictures_are_in_tensorboard_alone(tmp_path):
    writer = MetricWriter(tmp_path)
    wave, pixels = np.zeros(800, np.float32), np.zeros((4, 5, 3), np.uint8)
    writer.write(2, {"loss": 1.0, "heard": Clip(wave, 8000), "seen": Picture(pixels)})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 2, "loss": 1.0}]
    [events] = (tmp_path / "tensorboard").iterdir()
    events = events.read_bytes()
    for part in (b"heard", b"WAVEfmt", b"seen", b"PNG"):
        assert part in events


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("kept", [1, 10, 24])
def test_a_line_that_was_cut_is_dropped(tmp_path, kept):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:kept])
    assert steps(tmp_path) == [1]
    write(tmp_path, [2, 3], resumed=1)
    assert steps(tmp_path) == [1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_resumed_run_writes_no_step_twice_and_loses_none(tmp_path):
    write(tmp_path, [0, 1, 2, 3, 4, 4, 5, 6])  # 4: the step, and its evaluation
    write(tmp_path, [5, 6, 7], resumed=4)
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_a_run_that_begins_again_begins_empty(tmp_path):
    write(tmp_path, [0, 1, 2])
    write(tmp_path, [0])
    assert steps(tmp_path) == [0]


def test_rows_are_on_disk_while_the_run_goes_on(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    assert steps(tmp_path) == [1]
    writer.close()

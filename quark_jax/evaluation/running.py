"""A test set of the field from end to end: what a codec or a model makes of each clip, and the
report beside published figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.corpora import LeftOut
from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.evaluation import clips, codec, report, tasks
from quark_jax.evaluation.clips import Result
from quark_jax.evaluation.judging import Heard, metrics_of
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.suites import Suite, suite
from quark_jax.lm import Sampling, task
from quark_jax.pipeline import SAMPLING, QuarkAudio
from quark_jax.windows import Job, fit

_PLOTTED = 500  # clips in the plots of the page
_EXTRA = {"codebooks": ("codebooks", 0), "utmos": ("UTMOS", 2)}  # columns that others publish


@dataclass(frozen=True)
class Settings:
    """How a suite is run.

    Attributes:
        clips: at most so many, drawn by the seed; None for all.
        seed: of everything random.
        threshold: of a codec with a dynamic frame rate; None for its own.
        sampling: how a model's codes are drawn.
        batch: windows that a model computes at once.
        workers: processes that compute metrics; None for one a core, 1 for none but this.
        clap: Hugging Face folder of a CLAP model; or None.
    """

    clips: int | None = None
    seed: int = 0
    threshold: float | None = None
    sampling: Sampling = SAMPLING
    batch: int = 8
    workers: int | None = None
    clap: Path | None = None


class _Maker(Protocol):
    """What makes results: a codec, or a model at a task."""

    row: str  # the model's, in the report
    title: str

    def results(self, items: Sequence[Item], left_out: list[LeftOut]) -> Iterator[Result]:
        """Of each clip, in order; those that cannot be used are added to `left_out`."""


class _Codec:
    def __init__(self, model: Path, kind: str, settings: Settings):
        tokeniser = codec.load_codec(model, settings.threshold)
        self.config, self.columns = tokeniser.config, partial(metrics_of, kind)
        self.rows = codec.ours(tokeniser, settings.threshold)
        self.title, self.row = f"H-Codec {self.config.name}", list(self.rows)[-1]

    def results(self, items: Sequence[Item], left_out: list[LeftOut]) -> Iterator[Result]:
        for item in items:
            try:
                yield codec.result(item, self.config.sample_rate, self.rows, self.columns)
            except UserError as error:
                left_out.append(LeftOut(item.id, str(error)))


class _Task:
    def __init__(self, model: Path, kind: str, settings: Settings):
        self.quark, self.kind, self.settings = QuarkAudio.load(model), kind, settings
        self.quark.check(kind)
        self.row, self.title = tasks.MODEL, f"task {kind}, {task(kind).title}"

    def results(self, items: Sequence[Item], left_out: list[LeftOut]) -> Iterator[Result]:
        settings, columns = self.settings, partial(metrics_of, self.kind, self.settings.clap)
        options = {"sampling": settings.sampling, "batch": settings.batch}
        options["known"] = self.kind != "vc"  # nobody knows how the other voice would say it
        return tasks.results(self.quark, self._jobs(items, left_out), columns, **options)

    def _jobs(self, items: Sequence[Item], left_out: list[LeftOut]) -> Iterator[Job]:
        for item in items:
            try:
                yield self._job(item)
            except UserError as error:
                left_out.append(LeftOut(item.id, str(error)))

    def _job(self, item: Item) -> Job:
        """At the rate of the target, as others measure."""
        rate = audio.info(item.targets[0].path).rate
        targets = tuple(entry.read(rate) for entry in item.targets)
        others = (item.input, item.reference, item.other)
        others = [entry and entry.read(rate) for entry in others]
        length = len(targets[0])
        targets = tuple(fit(target, length) for target in targets)
        heard = Heard(item, targets, fit(others[0], length), *others[1:])
        return self.quark.job(
            self.kind, heard.input, rate, heard.reference, rate,
            text=item.query, seed=self.settings.seed, label=(heard, rate),
        )  # fmt: skip


def run_suite(
    name: str, model: Path, data: Path, out: Path, settings: Settings = Settings()
) -> None:
    """Run the suite `name` on the test set below `data`, and write the report `out`, which is
    printed; records of the clips go to OUT.jsonl. What is in there, of the same model and
    settings, is not done again.

    Raises:
        UserError: where model, data or `out` cannot be used.
    """
    report.check(out)
    about = suite(name)
    if settings.threshold is not None and not about.kind.startswith("codec"):
        raise UserError(f"threshold: suite {name} is of a model, not of a codec; leave it out")
    if settings.clap is not None and about.kind != "lass":
        raise UserError(f"clap: suite {name} has no descriptions; leave it out")
    place = about.place(data)
    items, left_out = _found(about, place, settings)
    maker = (_Codec if about.kind.startswith("codec") else _Task)(model, about.kind, settings)
    own = {"suite": name, "place": place.resolve()}
    own["settings"] = replace(settings, clips=None, batch=1, workers=None)
    key = clips.key_of(model, settings.clap, **own)
    made = partial(maker.results, left_out=left_out)
    records = clips.evaluate(out, key, items, made, workers=settings.workers)
    if not records:
        raise UserError(f"{place}: none of its clips can be used: {left_out[0].reason}")
    _write(out, about, maker, place, records, left_out, settings)


def _found(about: Suite, place: Path, settings: Settings) -> tuple[list[Item], list[LeftOut]]:
    """The clips to evaluate, in their order, and what cannot be used."""
    items, left_out = [], []
    for found in about.read(place):
        (left_out if isinstance(found, LeftOut) else items).append(found)
    if not items:
        why = f" ({left_out[0].file}: {left_out[0].reason})" if left_out else ""
        raise UserError(
            f"{place}: holds no clips{why}; {about.title} is laid out as {about.layout}"
        )
    names: set[str] = set()
    for item in items:
        if item.id in names:
            raise UserError(f"{place}: two clips are called {item.id!r}; keep one of them")
        names.add(item.id)
    if settings.clips is not None and settings.clips < len(items):
        drawn = np.random.default_rng(settings.seed).permutation(len(items))[: settings.clips]
        items = [items[number] for number in sorted(drawn)]
    return items, left_out


def _write(
    out: Path,
    about: Suite,
    maker: _Maker,
    place: Path,
    records: Sequence[dict[str, Any]],
    left_out: Sequence[LeftOut],
    settings: Settings,
) -> None:
    metrics = metrics_of(about.kind, settings.clap)
    missing = clips.missing_packages(records)
    missing += [f"{item.file}: {item.reason}" for item in left_out]
    seconds = sum(record["seconds"] for record in records)
    drawn = "" if settings.clips is None else f", at most {settings.clips} drawn by seed "
    drawn += "" if settings.clips is None else str(settings.seed)
    lines = [
        f"# {about.title}: {maker.title}",
        "",
        f"{len(records)} clips{drawn}, {seconds:.0f} s, of {place.name}/.",
        "",
        report.table(records, metrics, rows="", rates=codec.RATES, seed=settings.seed),
    ]
    size, used = 0, {}
    if isinstance(maker, _Codec):
        size = maker.config.quantiser.codebook_size
        used = codec.codebooks(records, size)
    lines += codec.codebook_table(used, size)
    lines += _beside(about, maker, records, metrics)
    lines += ["", _told(about, maker, settings)]
    if about.note:
        lines += ["", about.note]
    if len(records) > _PLOTTED:
        lines += ["", f"Plots show the first {_PLOTTED} clips; all are in {out.stem}.jsonl."]
    lines += report.remarks(records, missing)
    rows = dict.fromkeys(row for record in records for row in record["values"])
    keys = (*codec.RATES, *metrics)
    facts = {
        "suite": about.title,
        "model": maker.title,
        "clips": len(records),
        "seconds": seconds,
        "means": {r: {k: report.mean(records, r, k, k in metrics) for k in keys} for r in rows},
        "codebooks": used,
        "missing": missing,
    }
    report.write(out, "\n".join(lines) + "\n", facts, records[:_PLOTTED], metrics)


def _beside(
    about: Suite,
    maker: _Maker,
    records: Sequence[dict[str, Any]],
    metrics: Mapping[str, report.Metric],
) -> list[str]:
    """Our means and what is published, in lines of Markdown."""
    if not about.published:
        return []
    columns = codec.RATES | {name: (m.heading, m.digits) for name, m in metrics.items()} | _EXTRA
    asked = set().union(*(each.values for each in about.published))
    columns = {name: column for name, column in columns.items() if name in asked}
    ours = {name: report.mean(records, maker.row, name, name in metrics) for name in columns}
    if isinstance(maker, _Codec):
        ours["codebooks"] = maker.config.quantiser.codebooks
    cells = ["" if v is None else f"{v:.{columns[n][1]}f}" for n, v in ours.items()]
    lines = ["", "Beside what is published:", ""]
    lines += [f"| | {' | '.join(heading for heading, _ in columns.values())} | from |"]
    lines += ["|---" * (len(columns) + 2) + "|"]
    lines += [f"| {maker.row} | {' | '.join(cells)} | here |"]
    for each in about.published:
        cells = [f"{each.values[name]:g}" if name in each.values else "" for name in columns]
        lines.append(f"| {each.system} | {' | '.join(cells)} | {each.source} |")
    return lines


def _told(about: Suite, maker: _Maker, settings: Settings) -> str:
    """How the figures came about."""
    told = (
        "Means over clips, in brackets 95 % intervals (bootstrap over clips); errors of words and "
        "characters are totals over all of them. "
    )
    if isinstance(maker, _Codec):
        return told + (
            f"Compared at {maker.config.sample_rate} Hz; rates are totals over all seconds, "
            "without file headers."
        )
    sampling = settings.sampling
    told += "`input` is left as it is"
    if about.kind != "vc":
        told += (
            "; `codec` is the target coded and decoded, the most that a model over this codec can "
            "reach"
        )
    told += (
        ". Compared at the rate of the targets, results cut or filled with silence to their "
        "length. "
    )
    if about.kind == "ss":
        told += "Of two results the one goes to the voice that makes the mean the best. "
    return told + (
        f"Codes drawn by seed {settings.seed} at temperature {sampling.temperature:g}, top-k "
        f"{sampling.top_k}, top-p {sampling.top_p:g}, guidance {sampling.guidance:g}."
    )

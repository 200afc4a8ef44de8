"""Metrics of many clips in one table with intervals, and the files of a report."""

import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quark_jax.errors import MissingPackage, UserError
from quark_jax.evaluation import html
from quark_jax.files import replacing

_RESAMPLES = 2000  # of the bootstrap
_SUFFIXES = (".md", ".json", ".jsonl", ".html")  # of the files of a report, records among them


@dataclass(frozen=True)
class Asked:
    """Which recordings of a manifest a report is of.

    Attributes:
        count: at most so many.
        language: of the speech, as the manifest has it; None for any.
        with_text: only speech whose words are known.
        seed: of everything random.
    """

    manifest: Path
    count: int = 50
    split: str = "heldout"
    language: str | None = None
    with_text: bool = False
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """For the JSON of a report."""
        return asdict(self) | {"manifest": self.manifest.name}

    def drawn(self) -> dict[str, Any]:
        """How they are drawn, as `evaluation.codec.draw` takes it."""
        return {k: v for k, v in asdict(self).items() if k not in ("manifest", "count")}

    def of_a_clip(self) -> dict[str, Any]:
        """What the record of a clip may depend on."""
        return asdict(self) | {"manifest": self.manifest.resolve(), "count": None}


@dataclass(frozen=True)
class Metric:
    """A column. `value` takes what is judged: `judging.Heard`, the waves of a row, and the rate;
    None where the metric does not apply. Means weigh a clip by `weight` of the first of these."""

    heading: str
    digits: int
    value: Callable[..., float | None]
    needs_reference: bool = True
    weight: Callable[[Any], float] = lambda clip: 1.0


def measure(
    record: dict[str, Any],
    row: str,
    metrics: MutableMapping[str, Metric],
    *judged: Any,
    reference: bool = False,
) -> list[str]:
    """Note `metrics` of what is `judged` as a row in the record of a clip; where that is the
    `reference` itself, those that need none.

    `record` has "values" by row and metric (None where one does not apply or failed), "weights" by
    metric, and "failures", the reasons. Metrics whose package is missing are taken out of
    `metrics`; returned is a line for each of them.
    """
    values, missing = record["values"].setdefault(row, {}), []
    for key, metric in list(metrics.items()):
        if reference and metric.needs_reference:
            continue
        values[key] = None
        try:
            value = metric.value(*judged)
            if value is None:
                continue
            if not np.isfinite(value):
                raise UserError(f"is {value}; listen to the clip")
            record["weights"][key] = metric.weight(judged[0])
            values[key] = value
        except MissingPackage as error:
            del metrics[key], values[key]
            missing.append(f"{metric.heading}: {error}")
        except UserError as error:
            record["failures"].append(f"{row}, {metric.heading}: {error}")
    return missing


def table(
    records: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    *,
    rows: str,
    rates: Mapping[str, tuple[str, int]] | None = None,
    seed: int = 0,
) -> str:
    """Markdown: for each row the mean of each metric over clips and its 95 % interval.

    Intervals are percentiles of 2000 bootstrap resamples of the clips, drawn by `seed`. Where some
    clips have no value, the number of those that do follows.

    Args:
        records: as `measure` fills them.
        metrics: the columns; those without a value are left out.
        rows: what the rows are, over the first column.
        rates: further columns before them, heading and digits; each is a total over the total of
            the records' "seconds".
    """
    columns = dict(rates or {})
    columns |= {key: (metric.heading, metric.digits) for key, metric in metrics.items()}
    names = list(dict.fromkeys(name for record in records for name in record["values"]))
    columns = {
        key: column
        for key, column in columns.items()
        if any(_column(records, name, key, key in metrics)[0].size for name in names)
    }
    lines = [
        f"| {rows} | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = [
            _cell(
                *_column(records, name, key, key in metrics),
                len(records),
                digits,
                seed,
                key in metrics,
            )
            for key, (_, digits) in columns.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(
    records: Sequence[Mapping[str, Any]], row: str, key: str, metric: bool = True
) -> float | None:
    """What `table` has of a row in the column `key`, a `metric` or a rate; None where nothing."""
    values, weights = _column(records, row, key, metric)
    return float(np.average(values, weights=weights)) if values.size else None


def remarks(records: Iterable[Mapping[str, Any]], missing: Sequence[str]) -> list[str]:
    """Lines on what is not in the table, and why."""
    failures = [f"{r['id']}: {failure}" for r in records for failure in r["failures"]]
    lines = []
    for heading, items in (("Left out", missing), ("Failed on single clips", failures)):
        if items:
            lines += ["", f"{heading}:", "", *(f"- {item}" for item in items)]
    return lines


def check(out: Path, manifest: Path | None = None) -> None:
    """Raises UserError where no report, of what is in `manifest`, can be written to `out`."""
    if out.suffix != ".md":
        raise UserError(f"--out {out}: end it in .md; the JSON and the page go beside it")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: folder {out.parent} does not exist; create it first")
    if manifest is not None and manifest.resolve() in (
        out.with_suffix(suffix).resolve() for suffix in _SUFFIXES
    ):
        raise UserError(f"--out {out}: would write over {manifest}; choose another name")


def write(
    out: Path,
    text: str,
    facts: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    *,
    samples: int = 0,
) -> None:
    """Write a report, beside it its facts as JSON and a page with plots of the `records`, and the
    first `samples` of what lies in the folder of its name; print the report. Pictures that it names
    are in its folder."""
    headings = {key: metric.heading for key, metric in metrics.items()}
    shown = html.page(text, records, headings, out.with_suffix(""), samples, out.parent)
    with replacing(out.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
    with replacing(out.with_suffix(".html")) as beside:
        beside.write_text(shown)
    with replacing(out) as beside:
        beside.write_text(text)
    print(text)


def _column(
    records: Sequence[Mapping[str, Any]], name: str, key: str, metric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the clips that have one, and their weights."""
    pairs = [
        (value, record["weights"][key] if metric else record["seconds"])
        for record in records
        if (value := record["values"].get(name, {}).get(key)) is not None
    ]
    values, weights = np.array(pairs, np.float64).reshape(-1, 2).T
    return values, weights


def _cell(
    values: np.ndarray, weights: np.ndarray, clips: int, digits: int, seed: int, interval: bool
) -> str:
    if not values.size:
        return ""
    text = f"{np.average(values, weights=weights):.{digits}f}"
    if interval and len(values) > 1:
        rows = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
        means = np.sum((values * weights)[rows], 1) / np.sum(weights[rows], 1)
        low, high = np.percentile(means, (2.5, 97.5))
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text + (f", {len(values)} clips" if len(values) < clips else "")

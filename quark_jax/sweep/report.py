"""The report of a sweep: tables, plots, and a page of both."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from quark_jax.config import to_dict
from quark_jax.errors import UserError
from quark_jax.evaluation import report
from quark_jax.evaluation.codec import METRICS
from quark_jax.files import read_json
from quark_jax.sweep import plots
from quark_jax.sweep.config import Sweep
from quark_jax.sweep.run import FAILURE, RECORD
from quark_jax.sweep.words import EDGE, PLACES

_RATES = {"bitrate": ("bit/s", 0), "frame_rate": ("frames/s", 2)}


def write_report(sweep: Sweep, workdir: str | PathLike) -> dict[str, str]:
    """Write report.md, .json and .html into `workdir`, and the plots beside them, of the points
    that are done; print the report.

    Returns why each other point, by name, is not in it.

    Raises UserError where no point is done, or one is of another config.
    """
    workdir = Path(workdir)
    records, absent = _read(sweep, workdir)
    if not records:
        told = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise UserError(f"{workdir}: no point is done ({told}); run the sweep first")
    clips = _joined(records)
    shown = _described(records, clips)
    pictures = plots.write(workdir, sweep.series, shown, _metrics(sweep, shown))
    text = "\n".join(_text(sweep, records, clips, absent, pictures)) + "\n"
    facts = {"title": sweep.title, "points": shown, "absent": absent, "clips": clips}
    report.write(workdir / "report.md", text, facts, clips, _metrics(sweep, shown))
    return absent


def _read(sweep: Sweep, workdir: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The records of the points, in their order; why each other one has none."""
    records, absent = [], {}
    for point in sweep.points:
        folder = workdir / "points" / point.name
        if (folder / RECORD).is_file():
            record = read_json(folder / RECORD, "delete it and run the sweep again")
            if record["point"] != json.loads(json.dumps(to_dict(point))):
                raise UserError(
                    f"{folder}: is of another point {point.name}; give the config it was made with"
                )
            records.append(record)
        elif (folder / FAILURE).is_file():
            reason = read_json(folder / FAILURE, "delete it and run the sweep again")["reason"]
            absent[point.name] = f"failed: {reason}"
        else:
            absent[point.name] = "not done"
    return records, absent


def _joined(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The clips of all points as one list, with a row for each point."""
    clips: dict[str, dict[str, Any]] = {}
    for record in records:
        for clip in record["clips"]:
            about = {key: clip[key] for key in ("id", "speaker", "language", "seconds")}
            own = clips.setdefault(
                clip["id"], about | {"weights": {}, "values": {}, "failures": []}
            )
            own["weights"] |= clip["weights"]
            own["values"] |= clip["values"]
            own["failures"] += clip["failures"]
    return list(clips.values())


def _described(
    records: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each point in numbers: its record without the clips, and their means."""
    described = {}
    for record in records:
        name = record["point"]["name"]
        means = {
            key: mean
            for key in (*_RATES, *METRICS)
            if (mean := report.mean(clips, name, key, metric=key not in _RATES)) is not None
        }
        described[name] = {**record, "means": means}
        del described[name]["clips"]
    return described


def _metrics(sweep: Sweep, shown: Mapping[str, Any]) -> dict[str, report.Metric]:
    """Those of the sweep that some point has."""
    return {
        key: METRICS[key]
        for key in sweep.listening.metrics
        if any(key in point["means"] for point in shown.values())
    }


def _text(
    sweep: Sweep,
    records: Sequence[Mapping[str, Any]],
    clips: Sequence[Mapping[str, Any]],
    absent: Mapping[str, str],
    pictures: Sequence[tuple[str, str]],
) -> list[str]:
    data, tokens = sweep.codec.data, sweep.tokens
    seconds = sum(clip["seconds"] for clip in clips)
    missing = dict.fromkeys(line for record in records for line in record["missing"])
    lines = [
        f"# {sweep.title}",
        "",
        f"{len(records)} of {len(sweep.points)} points. Each codec was trained for "
        f"{sweep.codec.run.steps} steps of {data.batch_size} x {data.seconds:g} s, and judged on "
        f"{len(clips)} held-out clips, {seconds:.0f} s, of "
        f"{len({clip['speaker'] for clip in clips})} speakers. Each language model learned to "
        f"restore speech for {sweep.lm.run.steps} steps of {sweep.lm.data.batch_size} examples, "
        f"out of {tokens.train} of {tokens.seconds:g} s, and was judged on {tokens.heldout}.",
        "",
        "## Codecs",
        "",
        report.table(
            clips, _metrics(sweep, _described(records, clips)), rows="point", rates=_RATES
        ),
        "",
        "Means over clips, in brackets 95 % intervals (bootstrap over clips); rates are totals "
        "over all seconds. Frames of a dynamic rate are segments, and its bitrate has their "
        "lengths.",
        "",
        "## Codes and language models",
        "",
        *_codes_table(records),
        "",
        "Use and perplexity: of each codebook on held-out examples, the share of it that occurs "
        "and the exponential of the entropy, means over the codebooks of a stream. Nats are the "
        "cross-entropy of held-out codes, with the lengths of segments; unigram: by how often each "
        "occurs in its codebook in training. Nats per second are those per token, times the tokens "
        "of a second.",
        *_words_table(records),
    ]
    for file, what in pictures:
        lines += ["", f"![{what}]({file})"]
    if absent:
        lines += ["", "Points that are not there:", ""]
        lines += [f"- {name}: {reason}" for name, reason in absent.items()]
    return lines + report.remarks(clips, list(missing))


def _codes_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| point | codebooks | threshold | acoustic use, perplexity | semantic use, perplexity | "
        "tokens/s | nats per token | nats/s | unigram nats/s | accuracy |",
        "|---" * 10 + "|",
    ]
    for record in records:
        lm, codec = record["lm"], record["codec"]
        threshold = record["threshold"]
        cells = [
            record["point"]["name"],
            f"2 x {codec['codebooks']} of {codec['codebook_size']}",
            "" if threshold is None else f"{threshold:.4f}",
            *(_use(record["codebooks"][stream]) for stream in ("acoustic", "semantic")),
            f"{record['tokens']:.1f}",
            f"{lm['nats_per_code']:.3f}",
            f"{lm['nats_per_second']:.1f}",
            f"{lm['unigram_nats_per_second']:.1f}",
            f"{lm['accuracy']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _use(stream: Mapping[str, Sequence[float]]) -> str:
    use, perplexity = (sum(stream[key]) / len(stream[key]) for key in ("use", "perplexity"))
    return f"{use:.2f}, {perplexity:.0f}"


def _words_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [record for record in records if record["words"]]
    if not told:
        return []
    lines = [
        "",
        "## Where in the words",
        "",
        f"| point | {' | '.join(PLACES)} | everywhere |",
        "|---" * (len(PLACES) + 2) + "|",
    ]
    for record in told:
        places = record["words"]["places"]
        rates = [rate_of(places[place]) for place in PLACES]
        whole = {key: sum(places[place][key] for place in PLACES) for key in ("frames", "seconds")}
        cells = [f"{rate:.2f}" for rate in (*rates, rate_of(whole))]
        lines.append(f"| {record['point']['name']} | {' | '.join(cells)} |")
    first = told[0]["words"]
    seconds = [first["places"][place]["seconds"] for place in PLACES]
    shares = ", ".join(
        f"{100 * part / sum(seconds):.0f} % {place}"
        for place, part in zip(PLACES, seconds, strict=True)
    )
    return [
        *lines,
        "",
        f"Frames a second of each place, over {first['recordings']} held-out recordings whose "
        f"words are aligned, {sum(seconds):.0f} s: {shares}. A segment is one frame, spread evenly "
        f"over its time. Starts and ends are the first and the last {1000 * EDGE:g} ms of a word, "
        "or its halves where it is shorter than both.",
    ]


def rate_of(spent: Mapping[str, float]) -> float:
    """Frames a second; NaN of no time."""
    return spent["frames"] / spent["seconds"] if spent["seconds"] else float("nan")

"""How well a codec keeps speech, on recordings that it has not seen.

    python -m quark_jax.evaluation.codec --model FOLDER --manifest M.jsonl --out REPORT.md

codes and decodes clips of held-out speakers and writes a Markdown table of metrics with 95 %
intervals, beside it a JSON of every clip's values. Opus and Codec2, at the bitrates they have that
are nearest, and the originals are rows of the same table. A metric or codec whose package is
missing is a line in the report.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines import Entry, read_manifest
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import MissingPackage, UserError
from quark_jax.evaluation import classical, quality
from quark_jax.evaluation.metrics import mel_distance, si_sdr, stoi
from quark_jax.files import replacing
from quark_jax.hcodec import Tokeniser

SECONDS_MIN, SECONDS_MAX = 2.0, 30.0  # Whisper hears no more
ORIGINAL = "original"  # a row that is not coded
_RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Coded:
    """A recording as a codec gives it back."""

    wave: np.ndarray  # [samples], as long as the original
    bits: int | None = None
    frames: int | None = None  # code frames sent; segments, where the frame rate is dynamic


@dataclass(frozen=True)
class Metric:
    """A column. `value` takes entry, original, coded wave and their rate; None where the metric
    does not apply. Means weigh a clip by `weight`."""

    heading: str
    digits: int
    value: Callable[[Entry, np.ndarray, np.ndarray, int], float | None]
    needs_reference: bool = True
    weight: Callable[[Entry], float] = lambda entry: 1.0


def _word_errors(entry: Entry, original: np.ndarray, coded: np.ndarray, rate: int) -> float | None:
    if entry.language != "en" or not entry.text:
        return None
    return quality.word_error_rate(entry.text, coded, rate)


def _words(entry: Entry) -> float:
    return float(len(quality.normalise_english(entry.text).split()))


METRICS = {
    "stoi": Metric("STOI", 3, lambda entry, x, y, rate: stoi(x, y, rate)),
    "pesq_wb": Metric("PESQ-WB", 2, lambda entry, x, y, rate: quality.pesq_wb(x, y, rate)),
    "mel": Metric("mel distance", 3, lambda entry, x, y, rate: mel_distance(x, y, rate)),
    "si_sdr": Metric("SI-SDR (dB)", 1, lambda entry, x, y, rate: si_sdr(x, y)),
    "dnsmos": Metric(
        "DNSMOS", 2, lambda entry, x, y, rate: quality.dnsmos(y, rate), needs_reference=False
    ),
    "similarity": Metric(
        "speaker similarity",
        3,
        lambda entry, x, y, rate: quality.speaker_similarity(x, y, rate),
    ),
    "wer": Metric("WER (en)", 3, _word_errors, needs_reference=False, weight=_words),
}

Codec = Callable[[np.ndarray, int], Coded]


def draw(
    entries: Iterable[Entry],
    clips: int,
    *,
    split: str = "heldout",
    language: str | None = None,
    with_text: bool = False,
    seconds: tuple[float, float] = (SECONDS_MIN, SECONDS_MAX),
    seed: int = 0,
) -> list[Entry]:
    """At most `clips` recordings of a split, evenly over its speakers.

    Every speaker's are shuffled by `seed`; then all speakers, by name, give one in turn. Left out
    are recordings outside `seconds` (least, most), not in `language` where one is named, and
    `with_text` those whose words are not known.

    Raises:
        UserError: where none is left.
    """
    speakers = defaultdict(list)
    for entry in entries:
        asked = entry.split == split and language in (None, entry.language)
        asked = asked and (bool(entry.text) or not with_text)
        if asked and seconds[0] <= _seconds(entry) <= seconds[1]:
            speakers[entry.speaker].append(entry)
    if not speakers:
        raise UserError(
            f"no recordings of split {split!r}{'' if language is None else f' in {language}'} "
            f"between {seconds[0]:g} and {seconds[1]:g} s; ask for others"
        )
    turns = []
    for place, (_, own) in enumerate(sorted(speakers.items())):
        order = np.random.default_rng([seed, place]).permutation(len(own))
        turns += [(turn, place, own[i]) for turn, i in enumerate(order)]
    return [entry for *_, entry in sorted(turns, key=lambda item: item[:2])[:clips]]


def codecs(tokeniser: Tokeniser, threshold: float | None = None) -> dict[str, Codec]:
    """The original, ours and the classical codecs, by name."""
    config = tokeniser.config
    mode = classical.nearest_codec2_mode(config.bitrate)
    ours = f"H-Codec {config.name}" + ("" if threshold is None else f", threshold {threshold:g}")
    return {
        ORIGINAL: lambda wave, rate: Coded(wave),
        ours: partial(_ours, tokeniser, threshold),
        f"Opus, {classical.OPUS_FLOOR} bit/s asked": lambda wave, rate: Coded(
            *classical.opus(wave, rate)
        ),
        f"Codec2, mode {mode}": lambda wave, rate: Coded(*classical.codec2(wave, rate, mode)),
    }


def evaluate(
    entries: Sequence[Entry],
    rate: int,
    codecs: dict[str, Codec],
    *,
    progress: Callable[[Iterable[Entry]], Iterable[Entry]] = iter,
) -> tuple[list[dict], list[str]]:
    """Every metric of every codec on every clip.

    Args:
        rate: at which clips are coded and compared, in Hz.
        progress: wraps the iteration over clips (tqdm does).

    Returns:
        A record per clip: what it is, `values` by codec and metric (None where one does not apply
        or failed), and `failures` with reasons. And a line for each package that is missing.
    """
    codecs, metrics = dict(codecs), dict(METRICS)
    records, missing = [], []
    for entry in progress(entries):
        wave = entry.read(rate)
        seconds = len(wave) / rate
        record = {
            "id": entry.id,
            "speaker": entry.speaker,
            "language": entry.language,
            "seconds": seconds,
            "weights": {},
            "values": {},
            "failures": [],
        }
        for name in list(codecs):
            try:
                coded = codecs[name](wave, rate)
            except MissingPackage as error:
                del codecs[name]
                missing.append(f"{name}: {error}")
                continue
            record["values"][name] = {
                "bitrate": None if coded.bits is None else coded.bits / seconds,
                "frame_rate": None if coded.frames is None else coded.frames / seconds,
            }
            for key in list(metrics):
                try:
                    _judge(record, name, key, entry, wave, coded.wave, rate)
                except MissingPackage as error:
                    del metrics[key]
                    missing.append(f"{METRICS[key].heading}: {error}")
        records.append(record)
    return records, missing


def _judge(
    record: dict,
    name: str,
    key: str,
    entry: Entry,
    original: np.ndarray,
    coded: np.ndarray,
    rate: int,
) -> None:
    """Note in `record` the metric `key` of the codec `name`, or why there is none."""
    metric = METRICS[key]
    if name == ORIGINAL and metric.needs_reference:
        return
    record["values"][name][key] = None
    try:
        value = metric.value(entry, original, coded, rate)
        if value is None:
            return
        if not np.isfinite(value):
            raise UserError(f"is {value}; listen to the clip")
        record["weights"][key] = metric.weight(entry)
        record["values"][name][key] = value
    except MissingPackage:
        raise
    except UserError as error:
        record["failures"].append(f"{name}, {metric.heading}: {error}")


def table(records: Sequence[dict], seed: int = 0) -> str:
    """Markdown: for each codec the mean of each metric over clips and its 95 % interval.

    Intervals are percentiles of 2000 bootstrap resamples of the clips, drawn by `seed`. Rates are
    totals over the total time, word errors totals over all words. Where some clips have no value,
    the number of those that do follows.
    """
    columns = {"bitrate": ("bit/s", 0), "frame_rate": ("frames/s", 2)}
    columns |= {key: (metric.heading, metric.digits) for key, metric in METRICS.items()}
    names = list(dict.fromkeys(name for record in records for name in record["values"]))
    columns = {
        key: column
        for key, column in columns.items()
        if any(_column(records, name, key)[0].size for name in names)
    }
    lines = [
        "| codec | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = [
            _cell(*_column(records, name, key), len(records), digits, seed, key in METRICS)
            for key, (_, digits) in columns.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(records: Sequence[dict], name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of the clips that have one, and their weights."""
    pairs = [
        (value, record["weights"][key] if key in METRICS else record["seconds"])
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


def _ours(tokeniser: Tokeniser, threshold: float | None, wave: np.ndarray, rate: int) -> Coded:
    file = tokeniser.encode(wave, rate, threshold=threshold)
    codes, groups = file.codes, file.codes.acoustic.shape[-1]
    bits = (codes.acoustic.size + codes.semantic.size) * (file.codebook_size - 1).bit_length()
    if codes.lengths is not None:
        bits += groups * (file.longest - 1).bit_length()
    return Coded(tokeniser.decode(file)[0], bits, groups)


def _seconds(entry: Entry) -> float:
    if entry.seconds is not None:
        return entry.seconds
    found = audio.info(entry.path)
    return found.seconds if entry.frames is None else entry.frames / found.rate


def _report(
    entries: Sequence[Entry],
    records: Sequence[dict],
    missing: Sequence[str],
    tokeniser: Tokeniser,
    options: argparse.Namespace,
) -> str:
    config = tokeniser.config
    seconds = sum(record["seconds"] for record in records)
    speakers = len({entry.speaker for entry in entries})
    failures = [f"{r['id']}: {failure}" for r in records for failure in r["failures"]]
    only = f"in language {options.language!r} " if options.language else ""
    only += "whose words are known " if options.with_text else ""
    short = f" of {options.clips} asked for" if len(entries) < options.clips else ""
    lines = [
        f"# Codec H-Codec {config.name}, weights {tokeniser.weights_hash}",
        "",
        f"{len(entries)} clips{short}, {seconds:.0f} s, of {speakers} speakers, drawn by seed "
        f"{options.seed} from the recordings of split {options.split!r} in "
        f"{options.manifest.name} {only}that last {options.seconds_min:g} to "
        f"{options.seconds_max:g} s.",
        "",
        table(records, options.seed),
        "",
        "Means over clips, in brackets 95 % intervals (bootstrap over clips); word errors are "
        "totals over all words, rates totals over all seconds. Every codec is compared with the "
        f"original at {config.sample_rate} Hz; PESQ-WB, DNSMOS, speaker similarity and WER are "
        "computed at 16 kHz. Bitrates count what is sent, without file headers. SI-SDR says "
        "little of a codec that does not keep the phase, as Codec2.",
    ]
    if not any(entry.language == "en" and entry.text for entry in entries):
        lines += ["", "No WER: no clip is marked as English (`language` en) and has its text."]
    for heading, items in (("Left out", missing), ("Failed on single clips", failures)):
        if items:
            lines += ["", f"{heading}:", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> None:
    out, lengths = options.out, (options.seconds_min, options.seconds_max)
    if out.suffix != ".md":
        raise UserError(f"--out {out}: end it in .md; the JSON goes beside it")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: folder {out.parent} does not exist; create it first")
    folder = options.model
    if not (folder / "config.json").exists():
        folder = folder / "codec"  # of a whole system
    tokeniser = Tokeniser.load(folder)
    entries = draw(
        read_manifest(options.manifest),
        options.clips,
        split=options.split,
        language=options.language,
        with_text=options.with_text,
        seconds=lengths,
        seed=options.seed,
    )
    records, missing = evaluate(
        entries,
        tokeniser.config.sample_rate,
        codecs(tokeniser, options.threshold),
        progress=lambda clips: tqdm(clips, desc="evaluating", unit="clip"),
    )
    facts = {
        "codec": tokeniser.config.name,
        "weights": tokeniser.weights_hash,
        "manifest": options.manifest.name,
        "split": options.split,
        "language": options.language,
        "with_text": options.with_text,
        "seconds": lengths,
        "seed": options.seed,
        "threshold": options.threshold,
        "missing": missing,
        "clips": records,
    }
    with replacing(out.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
    report = _report(entries, records, missing, tokeniser, options)
    with replacing(out) as beside:
        beside.write_text(report)
    print(report)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code. Bad input is one line on stderr and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m quark_jax.evaluation.codec",
        description="Measure how well a codec keeps recordings that it has not seen.",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a codec or a system")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the report, .md")
    parser.add_argument("--split", default="heldout", help="(default: heldout)")
    parser.add_argument("--language", help="of the clips, as the manifest has it (default: any)")
    parser.add_argument("--with-text", action="store_true", help="clips whose words are known")
    parser.add_argument("--clips", type=_positive, default=50, help="at most (default: 50)")
    parser.add_argument("--seconds-min", type=float, default=SECONDS_MIN, help="(default: 2)")
    parser.add_argument("--seconds-max", type=float, default=SECONDS_MAX, help="(default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--threshold", type=float, help="of a codec with a dynamic frame rate")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())

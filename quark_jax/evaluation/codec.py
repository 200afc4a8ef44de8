"""How well a codec keeps speech, on recordings that it has not seen.

    python -m quark_jax.evaluation.codec --model FOLDER --manifest M.jsonl --out REPORT.md

codes and decodes clips of held-out speakers and writes a Markdown table of metrics with 95 %
intervals, beside it a JSON of every clip's values and a page of both, with plots, for the browser.
Opus and Codec2, at the bitrates they have that are nearest, and the originals are rows of the same
table. A metric or codec whose package is missing is a line in the report.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines import Entry, read_manifest
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import MissingPackage, UserError
from quark_jax.evaluation import classical, quality, report
from quark_jax.evaluation.metrics import mel_distance, si_sdr, stoi
from quark_jax.evaluation.report import Metric, measure
from quark_jax.hcodec import Tokeniser

SECONDS_MIN, SECONDS_MAX = 2.0, 30.0  # Whisper hears no more
ORIGINAL = "original"  # a row that is not coded


@dataclass(frozen=True)
class Coded:
    """A recording as a codec gives it back."""

    wave: np.ndarray  # [samples], as long as the original
    bits: int | None = None
    frames: int | None = None  # code frames sent; segments, where the frame rate is dynamic


def _word_errors(entry: Entry, original: np.ndarray, coded: np.ndarray, rate: int) -> float | None:
    if entry.language != "en" or not entry.text:
        return None
    return quality.word_error_rate(entry.text, coded, rate)


def _words(entry: Entry) -> float:
    return float(len(quality.normalise_english(entry.text).split()))


# Of entry, original, coded wave and the rate of both.
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
    metrics: Mapping[str, Metric] = METRICS,
    progress: Callable[[Iterable[Entry]], Iterable[Entry]] = iter,
) -> tuple[list[dict], list[str]]:
    """Every metric of every codec on every clip.

    Args:
        rate: at which clips are coded and compared, in Hz.
        metrics: those to compute.
        progress: wraps the iteration over clips (tqdm does).

    Returns:
        A record per clip: what it is, `values` by codec and metric (None where one does not apply
        or failed), and `failures` with reasons. And a line for each package that is missing.
    """
    codecs, metrics = dict(codecs), dict(metrics)
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
            judged = entry, wave, coded.wave, rate
            missing += measure(record, name, metrics, *judged, reference=name == ORIGINAL)
        records.append(record)
    return records, missing


def table(records: Sequence[dict], seed: int = 0) -> str:
    """`report.table` of the codecs, with bitrate and frame rate, totals over the total time."""
    rates = {"bitrate": ("bit/s", 0), "frame_rate": ("frames/s", 2)}
    return report.table(records, METRICS, rows="codec", rates=rates, seed=seed)


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
    lines += report.remarks(records, missing)
    return "\n".join(lines) + "\n"


def _run(options: argparse.Namespace) -> None:
    out, lengths = report.checked(options.out), (options.seconds_min, options.seconds_max)
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
    text = _report(entries, records, missing, tokeniser, options)
    report.write(out, text, facts, records, METRICS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code. Bad input is one line on stderr and code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m quark_jax.evaluation.codec",
        description="Measure how well a codec keeps recordings that it has not seen.",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a codec or a system")
    report.add_options(parser)
    parser.add_argument("--clips", type=report.positive, default=50, help="at most (default: 50)")
    parser.add_argument("--seconds-min", type=float, default=SECONDS_MIN, help="(default: 2)")
    parser.add_argument("--seconds-max", type=float, default=SECONDS_MAX, help="(default: 30)")
    parser.add_argument("--threshold", type=float, help="of a codec with a dynamic frame rate")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())

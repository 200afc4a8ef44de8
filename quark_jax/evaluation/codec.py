"""How well a codec keeps speech, on recordings that it has not seen.

    quark eval codec --model FOLDER --manifest M.jsonl --out REPORT.md

codes and decodes clips of held-out speakers and writes a Markdown table of metrics with 95 %
intervals, beside it a JSON of every clip's values and a page of both, with plots, for the browser.
Opus and Codec2, at the bitrates they have that are nearest, and the originals are rows of the same
table. A metric or codec whose package is missing is a line in the report. Clips that are done are
kept in OUT.jsonl: the same command goes on after an interruption.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines import Entry, read_manifest
from quark_jax import audio
from quark_jax.errors import MissingPackage, UserError
from quark_jax.evaluation import classical, judging, report
from quark_jax.evaluation.clips import ORIGINAL, Result, evaluate, key_of, missing_packages, shown
from quark_jax.evaluation.judging import Heard
from quark_jax.evaluation.metrics import codebook_use
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.report import Asked, Metric
from quark_jax.hcodec import Tokeniser

SECONDS_MIN, SECONDS_MAX = 2.0, 30.0  # Whisper hears no more
METRICS = judging.METRICS["codec"]
RATES = {"bitrate": ("bit/s", 0), "frame_rate": ("frames/s", 2)}  # heading, digits


@dataclass(frozen=True)
class Coded:
    """A recording as a codec gives it back."""

    wave: np.ndarray  # [samples], as long as the original
    bits: int | None = None
    frames: int | None = None  # code frames sent; segments, where the frame rate is dynamic
    codes: Mapping[str, np.ndarray] | None = None  # [frames] of each codebook, by its name


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


def ours(tokeniser: Tokeniser, threshold: float | None = None) -> dict[str, Codec]:
    """The original and our codec, by name."""
    name = f"H-Codec {tokeniser.config.name}"
    name += "" if threshold is None else f", threshold {threshold:g}"
    return {ORIGINAL: lambda wave, rate: Coded(wave), name: partial(code, tokeniser, threshold)}


def codecs(tokeniser: Tokeniser, threshold: float | None = None) -> dict[str, Codec]:
    """The original, our codec and the classical ones, by name."""
    mode = classical.nearest_codec2_mode(tokeniser.config.bitrate)
    return ours(tokeniser, threshold) | {
        f"Opus, {classical.OPUS_FLOOR} bit/s asked": lambda wave, rate: Coded(
            *classical.opus(wave, rate)
        ),
        f"Codec2, mode {mode}": lambda wave, rate: Coded(*classical.codec2(wave, rate, mode)),
    }


def result(
    item: Item,
    rate: int,
    codecs: Mapping[str, Codec],
    columns: Callable[[], Mapping[str, Metric]],
) -> Result:
    """A clip as each of `codecs` gives it back, to be judged at `rate` Hz by `columns`. Its record
    tells what was sent, and which codecs lack their package. Raises UserError where it cannot be
    read.
    """
    (entry,) = item.targets
    wave, rows = entry.read(rate), {}
    seconds = len(wave) / rate
    record = {"id": item.id, "speaker": entry.speaker, "language": entry.language}
    record |= {"seconds": seconds, "values": {}, "missing": []}
    for name, codec in codecs.items():
        try:
            coded = codec(wave, rate)
        except MissingPackage as error:
            record["missing"].append(f"{name}: {error}")
            continue
        note(record, name, coded, seconds)
        rows[name] = (coded.wave,)
    return Result(columns, record, Heard(item, (wave,)), rows, rate)


def note(record: dict, row: str, coded: Coded, seconds: float) -> None:
    """What was sent of a clip, into its record: rates as values of the row; how often each code was
    sent, by codebook, as "codes"."""
    record["values"][row] = {
        "bitrate": None if coded.bits is None else coded.bits / seconds,
        "frame_rate": None if coded.frames is None else coded.frames / seconds,
    }
    if coded.codes is not None:
        record["codes"] = {
            name: [part.tolist() for part in np.unique(codes, return_counts=True)]
            for name, codes in coded.codes.items()
        }


def table(records: Sequence[dict], seed: int = 0) -> str:
    """`report.table` of the codecs, with bitrate and frame rate, totals over the total time."""
    return report.table(records, METRICS, rows="codec", rates=RATES, seed=seed)


def codebooks(records: Iterable[dict], size: int) -> dict[str, dict[str, float]]:
    """Of each codebook of `size` codes, over all `records`: the share "in_use", and "perplexity"
    (`codebook_use`)."""
    counts: dict[str, np.ndarray] = {}
    for record in records:
        for name, (codes, times) in record.get("codes", {}).items():
            counts.setdefault(name, np.zeros(size))[codes] += times
    return {
        name: dict(zip(("in_use", "perplexity"), codebook_use(sent), strict=True))
        for name, sent in counts.items()
    }


def codebook_table(used: Mapping[str, Mapping[str, float]], size: int) -> list[str]:
    """Lines of Markdown on what `codebooks` found."""
    if not used:
        return []
    lines = [f"| codebook of {size} | in use | perplexity |", "|---|---|---|"]
    lines += [
        f"| {name} | {values['in_use']:.1%} | {values['perplexity']:.1f} |"
        for name, values in used.items()
    ]
    return ["", *lines]


def code(tokeniser: Tokeniser, threshold: float | None, wave: np.ndarray, rate: int) -> Coded:
    """A wave as our codec gives it back, and what it sent."""
    file = tokeniser.encode(wave, rate, threshold=threshold)
    sent, groups = file.codes, file.codes.acoustic.shape[-1]
    bits = (sent.acoustic.size + sent.semantic.size) * (file.codebook_size - 1).bit_length()
    if sent.lengths is not None:
        bits += groups * (file.longest - 1).bit_length()
    streams = {"acoustic": sent.acoustic, "semantic": sent.semantic}
    codes = {
        f"{name} {number}": np.asarray(row)
        for name, stream in streams.items()
        for number, row in enumerate(stream.reshape(-1, groups), 1)
    }
    return Coded(tokeniser.decode(file)[0], bits, groups, codes)


def _seconds(entry: Entry) -> float:
    if entry.seconds is not None:
        return entry.seconds
    found = audio.info(entry.path)
    return found.seconds if entry.frames is None else entry.frames / found.rate


def write_report(
    model: Path,
    asked: Asked,
    out: Path,
    *,
    seconds: tuple[float, float] = (SECONDS_MIN, SECONDS_MAX),
    threshold: float | None = None,
    workers: int | None = None,
) -> None:
    """Evaluate the codec in the folder `model`, its own or that of a whole system, and write the
    report `out`, which is printed.

    Args:
        seconds: least and most of a recording.
        threshold: of a codec with a dynamic frame rate; None for its own.
        workers: as of `clips.evaluate`.

    Raises:
        UserError: where the model, the manifest or `out` cannot be used.
    """
    report.check(out, asked.manifest)
    tokeniser = load_codec(model, threshold)
    entries = draw(read_manifest(asked.manifest), asked.count, seconds=seconds, **asked.drawn())
    own = {"codec": asked.of_a_clip(), "seconds": seconds, "threshold": threshold}
    rows, rate = codecs(tokeniser, threshold), tokeniser.config.sample_rate
    columns = partial(judging.metrics_of, "codec")
    records = evaluate(
        out,
        key_of(model, asked.manifest, **own),
        [Item(entry.id, (entry,)) for entry in entries],
        lambda items: (result(item, rate, rows, columns) for item in items),
        workers=workers,
    )
    missing = missing_packages(records)
    size = tokeniser.config.quantiser.codebook_size
    used = codebooks(records, size)
    facts = {
        "codec": tokeniser.config.name,
        "weights": tokeniser.weights_hash,
        **asked.facts(),
        "seconds": seconds,
        "threshold": threshold,
        "codebooks": used,
        "missing": missing,
        "clips": shown(records),
    }
    text = _report(entries, records, missing, tokeniser, asked, seconds, codebook_table(used, size))
    report.write(out, text, facts, records, METRICS)


def load_codec(folder: Path, threshold: float | None = None) -> Tokeniser:
    """The codec in `folder`, or in that of a whole system. Raises UserError, also for a `threshold`
    where the frame rate is fixed."""
    if not (folder / "config.json").exists():
        folder = folder / "codec"
    tokeniser = Tokeniser.load(folder)
    if threshold is not None and tokeniser.config.dynamic is None:
        raise UserError(
            f"codec {tokeniser.config.name}: its frame rate is fixed; leave out the threshold"
        )
    return tokeniser


def _report(
    entries: Sequence[Entry],
    records: Sequence[dict],
    missing: Sequence[str],
    tokeniser: Tokeniser,
    asked: Asked,
    lengths: tuple[float, float],
    used: Sequence[str],
) -> str:
    config = tokeniser.config
    seconds = sum(record["seconds"] for record in records)
    speakers = len({entry.speaker for entry in entries})
    only = f"in language {asked.language!r} " if asked.language else ""
    only += "whose words are known " if asked.with_text else ""
    short = f" of {asked.count} asked for" if len(entries) < asked.count else ""
    lines = [
        f"# Codec H-Codec {config.name}, weights {tokeniser.weights_hash}",
        "",
        f"{len(entries)} clips{short}, {seconds:.0f} s, of {speakers} speakers, drawn by seed "
        f"{asked.seed} from the recordings of split {asked.split!r} in "
        f"{asked.manifest.name} {only}that last {lengths[0]:g} to {lengths[1]:g} s.",
        "",
        table(records, asked.seed),
        *used,
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

"""How well a trained model does its tasks, on recordings that it has not seen.

    quark eval tasks --model FOLDER --manifest M.jsonl --task sr --out REPORT.md

makes examples of held-out recordings, as training examples are made, lets the model do the task,
and writes a Markdown table of metrics with 95 % intervals, beside it a JSON of every example's
values and a page of all of it for the browser. Rows of the same table are the input, left as it is;
the target coded and decoded, the most that a model over this codec can reach; and the target
itself. `--snr 0 10` has noise of 0 to 10 dB as the only degradation (beside the other speaker,
where the task has one). `--samples 4` keeps the audio of the first four examples, and pictures, in
a folder beside the report, and on the page to listen to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines import Entry, read_manifest
from data_pipelines.examples import Example, make_source
from data_pipelines.simulation import EXTRACTION, Degradation
from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.evaluation import clap as clap_models
from quark_jax.evaluation import quality, report
from quark_jax.evaluation.codec import draw
from quark_jax.evaluation.metrics import mel_distance, sdr, si_sdr, stoi
from quark_jax.evaluation.pictures import compare
from quark_jax.evaluation.report import Asked, Metric, measure
from quark_jax.lm import Sampling, task
from quark_jax.pipeline import SAMPLING, Progress, QuarkAudio
from quark_jax.windows import INPUT_RATE, Job, fit

INPUT, MODEL, CODEC, TARGET = "input", "model", "codec", "target"  # rows
_VOICES = ("tse", "rtse")  # tasks in which two voices compete


@dataclass(frozen=True)
class Clip:
    """One example, and what its results are measured by.

    `text`: what the target says, where it is English and all of it is in the target.
    `wanted`, `other`: the voices that compete, float32 [samples] at the rate of the target.
    """

    example: Example
    id: str
    text: str = ""
    wanted: np.ndarray | None = None
    other: np.ndarray | None = None


def _word_errors(clip: Clip, wave: np.ndarray, rate: int) -> float | None:
    return quality.word_error_rate(clip.text, wave, rate) if clip.text else None


def _character_errors(clip: Clip, wave: np.ndarray, rate: int) -> float | None:
    return quality.character_error_rate(clip.text, wave, rate) if clip.text else None


def _similarity(clip: Clip, wave: np.ndarray, rate: int) -> float:
    voice = clip.example.target if clip.wanted is None else clip.wanted
    return quality.speaker_similarity(voice, wave, rate)


def _nearer(clip: Clip, wave: np.ndarray, rate: int) -> float | None:
    if clip.wanted is None:
        return None
    wanted, other = (quality.speaker_similarity(v, wave, rate) for v in (clip.wanted, clip.other))
    return float(wanted > other)


# Of a clip, a wave as long as its target, and the rate of both.
_SPEECH = {
    "dnsmos": Metric(
        "DNSMOS", 2, lambda clip, y, rate: quality.dnsmos(y, rate), needs_reference=False
    ),
    "plcmos": Metric(
        "PLCMOS", 2, lambda clip, y, rate: quality.plcmos(y, rate), needs_reference=False
    ),
    "stoi": Metric("STOI", 3, lambda clip, y, rate: stoi(clip.example.target, y, rate)),
    "si_sdr": Metric("SI-SDR (dB)", 1, lambda clip, y, rate: si_sdr(clip.example.target, y)),
    "similarity": Metric("speaker similarity", 3, _similarity),
    "nearer": Metric("nearer to the wanted voice", 2, _nearer, needs_reference=False),
    "wer": Metric(
        "WER (en)",
        3,
        _word_errors,
        needs_reference=False,
        weight=lambda clip: float(len(quality.normalise_english(clip.text).split())),
    ),
    "cer": Metric(
        "CER (en)",
        3,
        _character_errors,
        needs_reference=False,
        weight=lambda clip: float(len(quality.normalise_english(clip.text))),
    ),
}
_SOUND = {"sdr": Metric("SDR (dB)", 1, lambda clip, y, rate: sdr(clip.example.target, y))}
_ANY = {
    "mel": Metric(
        "mel distance", 3, lambda clip, y, rate: mel_distance(clip.example.target, y, rate)
    )
}


def metrics_of(name: str, clap: Path | None = None) -> dict[str, Metric]:
    """The columns of a task: quality, intelligibility and voice are asked of speech. With the
    folder of a CLAP model, of lass also how well a result fits the words."""
    if not task(name).caption:
        return _SPEECH | _ANY
    if clap is None or name != "lass":
        return _SOUND | _ANY

    def fits(clip: Clip, wave: np.ndarray, rate: int) -> float:
        return clap_models.loaded(clap).similarity(clip.example.caption, wave, rate)

    return _SOUND | _ANY | {"clap": Metric("CLAP", 3, fits, needs_reference=False)}


def clips(
    name: str,
    entries: Sequence[Entry],
    count: int,
    *,
    rate: int,
    seconds: float,
    split: str = "heldout",
    language: str | None = None,
    with_text: bool = False,
    snr_db: tuple[float, float] | None = None,
    seed: int = 0,
) -> list[Clip]:
    """At most `count` examples of a task, of recordings of a split.

    Speech tasks take whole recordings of 2 to 30 s, evenly over speakers, as
    `evaluation.codec.draw` does; the tasks of events take examples of `seconds`.

    Args:
        entries: of the manifest.
        rate: of the targets, in Hz.
        language, with_text: as of `draw`.
        snr_db: least and most dB of noise, the only degradation then; None for the published ones.
        seed: of everything random.

    Raises:
        UserError: where there is nothing to make examples of.
    """
    own = {"rate": rate, "split": split, "seed": seed}
    if task(name).caption:
        if snr_db:
            raise UserError(f"snr: noise alone is for speech, not for {name}; leave it out")
        source = make_source(name, entries, seconds=seconds, **own)
        picked = range(0, len(source), max(1, len(source) // count))
        return [Clip(source[i], f"{name} {i}") for i in islice(picked, count)]
    if snr_db:
        own["config"] = _noise_alone(name, snr_db)
    known = {entry.id: entry for entry in entries}
    drawn = draw(
        (entry for entry in entries if entry.domain in ("speech", "")),
        count,
        split=split,
        language=language,
        with_text=with_text,
        seed=seed,
    )
    made = []
    for number, entry in enumerate(drawn):
        others = [other for other in entries if other != entry]
        length = len(entry.read(rate)) / rate
        # The first example is of the first recording, whole.
        own["seed"] = seed + number
        source = make_source(name, [entry, *others], seconds=length, **own)
        made.append(_clip(entry, source[0], known, rate))
    return made


def _noise_alone(name: str, snr_db: tuple[float, float]) -> Degradation:
    return replace(
        EXTRACTION if name in _VOICES else Degradation(interference_probability=0.0),
        reverberation_probability=0.0,
        noise_probability=1.0,
        snr_db=snr_db,
        bandwidth_probability=0.0,
        clipping_probability=0.0,
        packet_loss_probability=0.0,
    )


def _clip(entry: Entry, example: Example, known: Mapping[str, Entry], rate: int) -> Clip:
    told = example.provenance
    text = entry.text if entry.language == "en" and told["file"] == entry.id else ""
    if example.task not in _VOICES:
        return Clip(example, entry.id, text)
    enrolled = audio.resample(example.reference, INPUT_RATE, rate)
    if example.task == "tse":
        return Clip(example, entry.id, text, enrolled, known[told["interferer"]].read(rate))
    return Clip(example, entry.id, "", known[told["file"]].read(rate), enrolled)


def evaluate(
    quark: QuarkAudio,
    name: str,
    clips: Sequence[Clip],
    *,
    seed: int = 0,
    sampling: Sampling = SAMPLING,
    batch: int = 8,
    clap: Path | None = None,
    progress: Progress = iter,
    done: Callable[[int, Clip, Mapping[str, np.ndarray]], None] = lambda number, clip, waves: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every metric of the task `name` on every clip, of the model and of the rows beside it.

    Args:
        seed, sampling, batch: as of `QuarkAudio`'s tasks.
        clap: as of `metrics_of`.
        progress: wraps the iteration over clips (tqdm does).
        done: is told the number of each clip, the clip, and the waves of the rows by name, float32
            [samples] at the codec's rate.

    Returns:
        A record per clip, as `report.measure` fills it, and a line for each package that is
        missing.

    Raises:
        UserError: where the model was not trained on the task.
    """
    rate = quark.tokeniser.config.sample_rate
    metrics, records, missing = metrics_of(name, clap), [], []
    jobs = (_job(quark, name, clip, seed) for clip in clips)
    results = quark.run(jobs, sampling=sampling, batch=batch)
    for number, (job, (wave,)) in enumerate(progress(results)):
        clip = job.label
        waves = _rows(quark, clip, audio.resample(wave, job.rate, rate))
        record = {
            "id": clip.id,
            "seconds": len(clip.example.target) / rate,
            "caption": clip.example.caption,
            "weights": {},
            "values": {},
            "failures": [],
        }
        for row, heard in waves.items():
            missing += measure(record, row, metrics, clip, heard, rate, reference=row == TARGET)
        records.append(record)
        done(number, clip, waves)
    return records, missing


def _job(quark: QuarkAudio, name: str, clip: Clip, seed: int) -> Job:
    example = clip.example
    heard = example.input, INPUT_RATE, example.reference, INPUT_RATE
    return quark.job(name, *heard, text=example.caption, seed=seed, label=clip)


def _rows(quark: QuarkAudio, clip: Clip, result: np.ndarray) -> dict[str, np.ndarray]:
    """What is measured, as long as the target."""
    example, rate = clip.example, quark.tokeniser.config.sample_rate
    coded, _ = quark.tokeniser.decode(quark.tokeniser.encode(example.target, rate))
    rows = {
        INPUT: audio.resample(example.input, INPUT_RATE, rate),
        MODEL: result,
        CODEC: coded,
        TARGET: example.target,
    }
    return {row: fit(wave, len(example.target)) for row, wave in rows.items()}


def _keep(folder: Path, rate: int, count: int) -> Callable[..., None]:
    """What writes audio and picture of the first `count` examples into `folder`."""

    def keep(number: int, clip: Clip, waves: Mapping[str, np.ndarray]) -> None:
        if number >= count:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for row, wave in waves.items():
            audio.write(folder / f"{number}-{row}.flac", wave, rate)
        compare(folder / f"{number}.png", waves, rate)

    return keep


def write_report(
    model: Path,
    name: str,
    asked: Asked,
    out: Path,
    *,
    snr_db: tuple[float, float] | None = None,
    samples: int = 0,
    sampling: Sampling = SAMPLING,
    clap: Path | None = None,
) -> None:
    """Evaluate the model in the folder `model` at the task `name` and write the report `out`,
    which is printed.

    Args:
        snr_db: as of `clips`.
        samples: examples of which audio and pictures are kept.
        sampling: how codes are drawn.
        clap: as of `metrics_of`.

    Raises:
        UserError: where the model, the manifest or `out` cannot be used.
    """
    report.check(out)
    if clap is not None and name != "lass":
        raise UserError(f"clap: results of {name} are not what a text describes; leave it out")
    quark = QuarkAudio.load(model)
    quark.check(name)
    rate = quark.tokeniser.config.sample_rate
    drawn = clips(
        name,
        read_manifest(asked.manifest),
        asked.count,
        rate=rate,
        seconds=quark.seconds,
        split=asked.split,
        language=asked.language,
        with_text=asked.with_text,
        snr_db=snr_db,
        seed=asked.seed,
    )
    records, missing = evaluate(
        quark,
        name,
        drawn,
        seed=asked.seed,
        sampling=sampling,
        clap=clap,
        progress=lambda results: tqdm(results, "evaluating", len(drawn), unit="example"),
        done=_keep(out.with_suffix(""), rate, samples),
    )
    facts = {
        "task": name,
        **asked.facts(),
        "snr": snr_db,
        "sampling": asdict(sampling),
        "codec": quark.tokeniser.weights_hash,
        "missing": missing,
        "examples": records,
    }
    metrics = metrics_of(name, clap)
    text = _report(name, records, missing, asked, snr_db, sampling, metrics)
    report.write(out, text, facts, records, metrics, samples=samples)


def _report(
    name: str,
    records: Sequence[Mapping],
    missing: Sequence[str],
    asked: Asked,
    snr_db: tuple[float, float] | None,
    sampling: Sampling,
    metrics: Mapping[str, Metric],
) -> str:
    seconds = sum(record["seconds"] for record in records)
    degraded = "as in training"
    if snr_db and not task(name).caption:
        degraded = "with noise of {:g} to {:g} dB alone".format(*snr_db)
    lines = [
        f"# Task {name}, {task(name).title}",
        "",
        f"{len(records)} examples, {seconds:.0f} s, of split {asked.split!r} in "
        f"{asked.manifest.name}, made {degraded}, drawn by seed {asked.seed}; codes drawn at "
        f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}, "
        f"guidance {sampling.guidance:g}.",
        "",
        report.table(records, metrics, rows="", seed=asked.seed),
        "",
        "`input` is left as it is; `codec` is the target coded and decoded, the most that a model "
        "over this codec can reach. Means over examples, in brackets 95 % intervals (bootstrap "
        "over examples); errors of words and characters are totals over all of them. Results are "
        "cut, or filled with silence, to the length of the target.",
        *report.remarks(records, missing),
    ]
    return "\n".join(lines) + "\n"

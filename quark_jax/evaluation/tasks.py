"""How well a trained model does its tasks, on recordings that it has not seen.

    quark eval tasks --model FOLDER --manifest M.jsonl --task sr --out REPORT.md

makes examples of held-out recordings, as training examples are made, lets the model do the task,
and writes a Markdown table of metrics with 95 % intervals, beside it a JSON of every example's
values and a page of all of it for the browser. Rows of the same table are the input, left as it is;
the target coded and decoded, the most that a model over this codec can reach; and the target
itself. `--snr 0 10` has noise of 0 to 10 dB as the only degradation (beside the other speaker,
where the task has one). Separation is asked of two voices without rooms or noise, compared at
16 kHz. `--samples 4` keeps the audio of the first four examples, and pictures, in a folder beside
the report, and on the page to listen to. Examples that are done are kept in OUT.jsonl: the same
command goes on after an interruption.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import Entry, read_manifest
from data_pipelines.examples import Example, Source, make_source
from data_pipelines.simulation import EXTRACTION, Degradation
from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.evaluation import report
from quark_jax.evaluation.clips import TARGET, Result, evaluate, key_of, missing_packages, shown
from quark_jax.evaluation.codec import draw
from quark_jax.evaluation.judging import Heard, metrics_of
from quark_jax.evaluation.pictures import compare
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.report import Asked, Metric
from quark_jax.lm import Sampling, task
from quark_jax.pipeline import SAMPLING, QuarkAudio
from quark_jax.windows import INPUT_RATE, Job, fit

INPUT, MODEL, CODEC = "input", "model", "codec"  # rows, beside TARGET
_DEGRADED = ("sr", "tse", "rtse")  # tasks whose degradations can be chosen
_CLEAN = Degradation(
    interference_probability=0.0,
    reverberation_probability=0.0,
    noise_probability=0.0,
    bandwidth_probability=0.0,
    clipping_probability=0.0,
    packet_loss_probability=0.0,
)


@dataclass(frozen=True)
class Clip:
    """One example to be made.

    `make`: the example, and what results are measured by: of voices that compete, the wanted one is
    the `reference`; text of an entry is what its target says, all of it.
    """

    id: str
    make: Callable[[], tuple[Example, Heard]]


def columns(name: str, clap: Path | None = None) -> dict[str, Metric]:
    """Metrics of the task `name`: quality, intelligibility and voice are asked of speech, the best
    permutation of voices that are separated. With the folder of a CLAP model also how well results
    fit the words."""
    if name == "ss":
        return metrics_of("ss", clap)
    return metrics_of("sound" if task(name).caption else "speech", clap)


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
    """At most `count` examples of a task, of recordings of a split; none of them made yet.

    Speech tasks take whole recordings of 2 to 30 s, evenly over speakers, as
    `evaluation.codec.draw` does; the tasks of events take examples of `seconds`.

    Args:
        entries: of the manifest.
        rate: of the targets, in Hz.
        language, with_text: as of `draw`.
        snr_db: least and most dB of noise, the only degradation then; None for the published ones.
        seed: of everything random.

    Raises:
        UserError: where there is nothing to make examples of; from `Clip.make` too.
    """
    own = {"rate": rate, "split": split, "seed": seed}
    if snr_db and name not in _DEGRADED:
        raise UserError(
            f"snr: noise alone is for {', '.join(_DEGRADED)}; leave it out for task {name}"
        )
    if task(name).caption:
        source = make_source(name, entries, seconds=seconds, **own)
        picked = range(0, len(source), max(1, len(source) // count))
        return [
            Clip(f"{name} {i}", partial(_event, f"{name} {i}", source, i))
            for i in islice(picked, count)
        ]
    if snr_db:
        own["config"] = _noise_alone(name, snr_db)
    speech = [entry for entry in entries if entry.domain in ("speech", "")]
    make = partial(_speech, name)
    if name == "ss":
        make, speech = _separation, _named(speech, split)
        entries = speech  # whoever else is heard is named too
    asked = {"split": split, "language": language, "with_text": with_text, "seed": seed}
    return [
        Clip(entry.id, partial(make, entry, entries, own | {"seed": seed + number}))
        for number, entry in enumerate(draw(speech, count, **asked))
    ]


def _event(name: str, source: Source, index: int) -> tuple[Example, Heard]:
    example = source[index]
    return example, _heard(example, Item(name, (), query=example.caption))


def _speech(
    name: str, entry: Entry, entries: Sequence[Entry], own: Mapping[str, Any]
) -> tuple[Example, Heard]:
    """An example of all of a recording; what else it takes comes from the other `entries`."""
    example = _whole(name, entry, entries, own)
    known = name != "rtse" and example.provenance["file"] == entry.id
    item = Item(entry.id, (entry if known else replace(entry, text=""),))
    return example, _heard(example, item, *_voices(example, entries))


def _whole(name: str, entry: Entry, entries: Sequence[Entry], own: Mapping[str, Any]) -> Example:
    """The example of all of `entry`: the first of a source is of its first recording."""
    others = [other for other in entries if other != entry]
    seconds = len(entry.read(own["rate"])) / own["rate"]
    return make_source(name, [entry, *others], seconds=seconds, **own)[0]


def _voices(example: Example, entries: Sequence[Entry]) -> tuple[np.ndarray, ...]:
    """The wanted voice and the one that it competes with, at the rate of the target; none where
    the task has none."""
    if example.task not in ("tse", "rtse", "vc"):
        return ()
    rate, told = example.rate, example.provenance
    reference = audio.resample(example.reference, INPUT_RATE, rate)
    if example.task == "vc":
        return reference, audio.resample(example.input, INPUT_RATE, rate)
    recorded = told["interferer" if example.task == "tse" else "file"]
    [other] = (found.read(rate) for found in entries if found.id == recorded)
    return (reference, other) if example.task == "tse" else (other, reference)


def _separation(
    entry: Entry, entries: Sequence[Entry], own: Mapping[str, Any]
) -> tuple[Example, Heard]:
    """All of a recording with another speaker beside it, at the rate of the input: what is not the
    one voice is the other."""
    two = replace(_CLEAN, interference_probability=1.0, sir_db=EXTRACTION.sir_db)
    example = _whole("sr", entry, entries, {**own, "rate": INPUT_RATE, "config": two})
    voices = example.target, example.input - example.target
    return example, Heard(Item(entry.id, (entry,)), voices, example.input)


def _named(speech: Iterable[Entry], split: str) -> list[Entry]:
    """Recordings whose speaker is named. Raises UserError where a split has no two speakers."""
    named = [entry for entry in speech if entry.speaker]
    if (count := len({entry.speaker for entry in named if entry.split == split})) < 2:
        raise UserError(
            f"task ss: {count} named speakers in split {split!r}, but it takes 2; fill in "
            "'speaker' in the manifest, or add recordings"
        )
    return named


def _heard(example: Example, item: Item, *voices: np.ndarray) -> Heard:
    heard = audio.resample(example.input, INPUT_RATE, example.rate)
    return Heard(item, (example.target,), heard, *voices)


def _noise_alone(name: str, snr_db: tuple[float, float]) -> Degradation:
    noisy = replace(_CLEAN, noise_probability=1.0, snr_db=snr_db)
    if name == "sr":
        return noisy
    return replace(noisy, interference_probability=1.0, sir_db=EXTRACTION.sir_db)


def results(
    quark: QuarkAudio,
    jobs: Iterable[Job],
    columns: Callable[[], Mapping[str, Metric]],
    *,
    sampling: Sampling = SAMPLING,
    batch: int = 8,
    known: bool = True,
) -> Iterator[Result]:
    """What the model makes of each job, in order, and the rows beside it, as long as the target.

    Args:
        jobs: the label of each is (`Heard`, its rate in Hz).
        sampling, batch: as of `QuarkAudio.run`.
        known: whether the targets are what should come out, and have rows of their own.
    """
    tokeniser = quark.tokeniser
    for job, made in quark.run(jobs, sampling=sampling, batch=batch):
        heard, rate = job.label
        rows = {INPUT: (heard.input,) * len(made)}
        rows[MODEL] = tuple(audio.resample(wave, job.rate, rate) for wave in made)
        if known:
            rows[CODEC] = tuple(
                tokeniser.decode(tokeniser.encode(t, rate))[0] for t in heard.targets
            )
            rows[TARGET] = heard.targets
        length = len(heard.targets[0])
        rows = {row: tuple(fit(wave, length) for wave in waves) for row, waves in rows.items()}
        record = {"id": heard.item.id, "seconds": length / rate, "caption": heard.item.query}
        yield Result(columns, record | {"values": {}}, heard, rows, rate)


def jobs(quark: QuarkAudio, name: str, clips: Iterable[Clip], seed: int = 0) -> Iterator[Job]:
    """The examples as jobs for `results`, each made when it is asked for."""
    for example, heard in (clip.make() for clip in clips):
        waves = example.input, INPUT_RATE, example.reference, INPUT_RATE
        label = heard, example.rate
        yield quark.job(name, *waves, text=example.caption, seed=seed, label=label)


@dataclass(frozen=True)
class _Samples:
    """Audio and pictures of the first examples, in a folder. `numbers`: theirs, by id."""

    folder: Path
    numbers: Mapping[str, int]

    def kept(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, those of the first examples on disk and known to their records."""
        for result in results:
            if (number := self.numbers.get(result.record["id"])) is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                waves = dict(_one_by_one(result.rows))
                for row, wave in waves.items():
                    audio.write(self.folder / f"{number}-{row}.flac", wave, result.rate)
                compare(self.folder / f"{number}.png", waves, result.rate)
                record = {**result.record, "sample": self._hash(number)}
                result = replace(result, record=record)
            yield result

    def has(self, clip: Clip, record: Mapping[str, Any]) -> bool:
        """Whether what is on disk, if it has to be, is of this record: the last model to write
        there may have been another."""
        number = self.numbers.get(clip.id)
        return number is None or record.get("sample") == self._hash(number)

    def _hash(self, number: int) -> str:
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob(f"{number}[-.]*")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def _one_by_one(rows: Mapping[str, Sequence[np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The waves of rows with their names, "row-1" and so on of several; the input is one."""
    for row, waves in rows.items():
        if row == INPUT or len(waves) == 1:
            yield row, waves[0]
        else:
            yield from ((f"{row}-{n}", wave) for n, wave in enumerate(waves, 1))


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
    workers: int | None = None,
) -> None:
    """Evaluate the model in the folder `model` at the task `name` and write the report `out`,
    which is printed.

    Args:
        snr_db: as of `clips`.
        samples: examples of which audio and pictures are kept.
        sampling: how codes are drawn.
        clap: as of `columns`.
        workers: as of `clips.evaluate`.

    Raises:
        UserError: where the model, the manifest or `out` cannot be used.
    """
    report.check(out, asked.manifest)
    if clap is not None and name != "lass":
        raise UserError(f"clap: results of {name} are not what a text describes; leave it out")
    quark = QuarkAudio.load(model)
    quark.check(name)
    drawn = clips(
        name,
        read_manifest(asked.manifest),
        asked.count,
        rate=quark.tokeniser.config.sample_rate,
        seconds=quark.seconds,
        snr_db=snr_db,
        **asked.drawn(),
    )
    first = _Samples(out.with_suffix(""), {c.id: n for n, c in enumerate(drawn[:samples])})
    metrics = partial(columns, name, clap)
    own = {"task": name, "asked": asked.of_a_clip(), "snr": snr_db, "sampling": sampling}

    def made(todo: Sequence[Clip]) -> Iterator[Result]:
        asked_for = jobs(quark, name, todo, asked.seed)
        return first.kept(results(quark, asked_for, metrics, sampling=sampling))

    key = key_of(model, asked.manifest, clap, **own)
    records = evaluate(out, key, drawn, made, workers=workers, whole=first.has)
    missing = missing_packages(records)
    facts = {
        "task": name,
        **asked.facts(),
        "snr": snr_db,
        "sampling": asdict(sampling),
        "codec": quark.tokeniser.weights_hash,
        "missing": missing,
        "examples": shown(records),
    }
    text = _report(name, records, missing, asked, snr_db, sampling, metrics())
    report.write(out, text, facts, records, metrics(), samples=samples)


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
    degraded, matched = "as in training", ""
    if name == "ss":
        degraded = "of two voices alone"
        matched = " Of two results the one goes to the voice that makes the mean the best."
    elif snr_db:
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
        "cut, or filled with silence, to the length of the target." + matched,
        *report.remarks(records, missing),
    ]
    return "\n".join(lines) + "\n"

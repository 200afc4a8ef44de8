"""`quark restore` and the other tasks of the language model: one table, one way for all."""

import argparse
import hashlib
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quark_jax.cli.options import (
    AUDIO,
    audio_command,
    chosen_sampling,
    count,
    model_folder,
    mono_option,
    number,
    sampling_options,
    seed,
)
from quark_jax.errors import UserError

if TYPE_CHECKING:  # --help is to be quick
    from quark_jax.cli.recordings import Recording
    from quark_jax.lm import Sampling
    from quark_jax.pipeline import Done, QuarkAudio
    from quark_jax.windows import Job


@dataclass(frozen=True)
class TaskCommand:
    """The command of one task.

    Attributes:
      name: of the command.
      task: name of the task in `quark_jax.lm.TASKS`.
      help: what it does.
      source: what the input is; None where there is none.
      target: what the result is.
      reference, text: option that takes them, and its help; or None.
      results: how many waves it makes.
    """

    name: str
    task: str
    help: str
    source: str | None
    target: str
    reference: tuple[str, str] | None = None
    text: tuple[str, str] | None = None
    results: int = 1


COMMANDS = (
    TaskCommand("restore", "sr", "degraded speech to clean speech", "noisy", "clean"),
    TaskCommand(
        "extract",
        "tse",
        "one speaker out of a mixture",
        "mixture",
        "speaker",
        reference=("--enrol", "another recording of the wanted speaker"),
    ),
    TaskCommand(
        "separate",
        "ss",
        "mixture of two speakers to each of them, in files that end in _1 and _2",
        "mixture",
        "speaker",
        results=2,
    ),
    TaskCommand(
        "convert",
        "vc",
        "speech to the same words in another voice",
        "speech",
        "converted",
        reference=("--reference", "a recording of the voice to take"),
    ),
    TaskCommand(
        "query",
        "lass",
        "the sound that a text describes, out of a mixture",
        "mixture",
        "sound",
        text=("--text", "what to keep, as 'a dog barking'"),
    ),
    TaskCommand(
        "edit",
        "edit",
        "audio changed as an instruction says",
        "before",
        "after",
        text=("--instruction", "what to change, as 'add a dog barking'"),
    ),
    TaskCommand(
        "generate",
        "tta",
        "a description to audio",
        None,
        "sound",
        text=("--text", "description, as 'rain on a roof'"),
    ),
    TaskCommand(
        "cancel-echo",
        "aec",
        "what a microphone hears to near-end speech alone",
        "microphone",
        "near",
        reference=("--far-end", "what the loudspeaker plays, from the same moment on"),
    ),
)


def add_task_commands(commands) -> None:
    """Add the commands of `COMMANDS` to the subparsers `commands`."""
    for command in COMMANDS:
        _add(commands, command)


def _add(commands, command: TaskCommand) -> None:
    files = {f"{command.target}.wav": f"{AUDIO}, by its suffix"}
    if command.source:
        files = {
            f"{command.source}.wav": f"{AUDIO}, of any rate and length; or a folder of such",
            f"{command.target}.wav": f"{AUDIO}, by its suffix; or a folder, for one",
        }
    parser = audio_command(commands, command.name, command.help, files, partial(_run, command))
    if command.reference:
        option, what = command.reference
        what += "; or a folder that has one of the same name for each"
        parser.add_argument(option, dest="reference", type=Path, required=True, help=what)
    if command.text:
        option, what = command.text
        what += "; @FILE reads it from a text file, @FOLDER has a NAME.txt for each"
        parser.add_argument(option, dest="text", required=True, help=what)
    if command.source:
        mono_option(parser)
    else:
        parser.add_argument(
            "--seconds", type=number, help="at most; default: those that the model was trained on"
        )
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=seed, default=0, help="same seed, same result; default: %(default)s"
    )
    sampling_options(parser)
    parser.add_argument(
        "--batch",
        type=count,
        default=8,
        help="windows computed at once; default: %(default)s",
    )


def _run(command: TaskCommand, options: argparse.Namespace) -> None:
    from quark_jax.cli import recordings
    from quark_jax.lm import task

    sampling = chosen_sampling(options, task(command.task))
    text = options.text if command.text else ""
    reference = options.reference if command.reference else None
    given = (options.target, command.results, reference, text)
    folder = options.source if command.source else Path(text[1:]) if text[:1] == "@" else None
    if folder is not None and folder.is_dir():
        found = recordings.many(folder, *given, described=not command.source)
        _run_folder(command, found, sampling, options)
    else:
        source = options.source if command.source else None
        _run_one(command, recordings.one(source, *given), sampling, options)


def _run_one(
    command: TaskCommand,
    recording: "Recording",
    sampling: "Sampling",
    options: argparse.Namespace,
) -> None:
    waves = _read(recording, options)  # what is wrong with it is told first
    quark = _open(command, options)
    job = _job(quark, command, recording, waves, options)
    ((_, made),) = _finish(quark, command, [recording], [job], sampling, options)
    for target, wave in zip(recording.targets, made, strict=True):
        print(f"{target}: {len(wave) / job.rate:.2f} s at {job.rate} Hz")


def _run_folder(
    command: TaskCommand,
    found: list["Recording"],
    sampling: "Sampling",
    options: argparse.Namespace,
) -> None:
    """The recordings whose results are not there yet; those that cannot be used are left out."""
    from tqdm import tqdm

    from quark_jax.cli.recordings import settle

    # What is wrong with all of them is told once.
    if command.reference and not options.reference.is_dir():
        _read_reference(options.reference, options.mono)
    quark = _open(command, options)
    if command.text and len({recording.text for recording in found}) == 1:
        quark.caption(found[0].text)
    settle(options.target, _settings(command, options))
    missing = [recording for recording in found if not recording.done]
    if command.task == "edit":  # a batch lasts as long as its longest
        missing.sort(key=lambda recording: recording.seconds)
    refused = []

    def jobs() -> Iterator["Job"]:
        for recording in missing:
            try:
                yield _job(quark, command, recording, _read(recording, options), options)
            except UserError as error:
                refused.append(recording)
                tqdm.write(f"quark: {error}; left out", file=sys.stderr)

    made = sum(1 for _ in _finish(quark, command, missing, jobs(), sampling, options))
    kept = len(found) - len(missing)
    print(f"{options.target}: {made} made" + (f", {kept} were there" if kept else ""))
    if refused:
        raise UserError(
            f"{len(refused)} of {len(found)} could not be used, as told above; replace them, and "
            "run the same command again"
        )


def _open(command: TaskCommand, options: argparse.Namespace) -> "QuarkAudio":
    from quark_jax.pipeline import QuarkAudio

    quark = QuarkAudio.load(model_folder(options.model))
    try:
        quark.check(command.task)
    except UserError as error:
        raise UserError(f"{options.model}: {error}") from error
    return quark


def _read(recording: "Recording", options: argparse.Namespace) -> tuple:
    """The wave of a recording and its rate, and those of its reference; None where it has none."""
    from quark_jax import audio

    wave = reference = (None, None)
    if recording.source:
        wave = audio.read(recording.source, mono=options.mono)
    if recording.reference:
        reference = _read_reference(recording.reference, options.mono)
    return *wave, *reference


@lru_cache(1)  # one may be for all recordings
def _read_reference(path: Path, mono: str) -> tuple:
    from quark_jax import audio

    return audio.read(path, mono=mono)


def _job(
    quark: "QuarkAudio",
    command: TaskCommand,
    recording: "Recording",
    waves: tuple,
    options: argparse.Namespace,
) -> "Job":
    try:
        return quark.job(
            command.task,
            *waves,
            text=recording.text,
            seconds=None if command.source else options.seconds,
            seed=options.seed,
            label=recording,
        )
    except UserError as error:
        raise UserError(f"{recording.name}: {error}") from error


def _finish(
    quark: "QuarkAudio",
    command: TaskCommand,
    found: list["Recording"],
    jobs: Iterable["Job"],
    sampling: "Sampling",
    options: argparse.Namespace,
) -> Iterator["Done"]:
    """Run `jobs`, which are of `found`, and write each one's results when it is done."""
    from tqdm import tqdm

    from quark_jax import audio

    windows = sum(max(1, math.ceil(each.seconds / quark.seconds)) for each in found)
    total = math.ceil(command.results * windows / options.batch)
    progress = partial(tqdm, total=total, desc=command.name, unit="batch")
    done = quark.run(jobs, sampling=sampling, batch=options.batch, progress=progress)
    with closing(done):  # and with it the bar, before anything is said of an error
        for job, waves in done:
            for target, wave in zip(job.label.targets, waves, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                audio.write(target, wave, job.rate)
            yield job, waves


def _settings(command: TaskCommand, options: argparse.Namespace) -> dict[str, Any]:
    """What the results in a folder depend on, beside the recordings."""
    digest = hashlib.sha256()
    for name in ("lm", "encoders"):  # the config of the former names the codec's weights
        for path in sorted((options.model / name).rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    while block := file.read(1 << 24):
                        digest.update(block)
    beside = ("source", "target", "batch", "run")
    values = {name: value for name, value in vars(options).items() if name not in beside}
    values |= {"command": command.name, "model": digest.hexdigest()[:16]}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    }

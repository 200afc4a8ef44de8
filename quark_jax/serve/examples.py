"""Recordings to try each task on, made from the samples that come with the project."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_pipelines import Entry, read_manifest, samples_manifest
from data_pipelines.examples import INPUT_RATE, make_source
from quark_jax import audio
from quark_jax.cli.tasks import TaskCommand
from quark_jax.lm import task

_COUNT = 3  # examples of a task
_SECONDS = 5.0  # of a simulated one
_PHRASE = re.compile(r"as '(.+)'")  # what the help of a text gives as an example


@dataclass(frozen=True)
class Ready:
    """What to fill in, and how to call it."""

    label: str
    source: Path | None = None
    reference: Path | None = None
    text: str = ""


def examples(command: TaskCommand, folder: Path) -> list[Ready]:
    """Examples of a task, their audio written into `folder`.

    What a speech task is about is simulated, as in training: noise, rooms, a second speaker or an
    echo, over recordings that training leaves out. To tasks with a text goes the recording as it
    is, with the text that the command's help has as its example.
    """
    text = ""
    if command.text:
        found = _PHRASE.search(command.text[1])
        text = found[1] if found else ""
    if not command.source:
        return [Ready(text, text=text)] if text else []
    entries = [entry for entry in read_manifest(samples_manifest()) if entry.split == "heldout"]
    if command.text:
        return [Ready(f"{text}, in: {_told(e)}", Path(e.path), text=text) for e in _spread(entries)]
    return list(islice(_simulated(command, entries, folder), _COUNT))


def _simulated(command: TaskCommand, entries: list[Entry], folder: Path) -> Iterator[Ready]:
    about = task(command.task)
    name = (about.passes or (about.name,))[-1]
    known = {entry.id: entry for entry in entries}
    source = make_source(name, entries, rate=INPUT_RATE, seconds=_SECONDS, seed=1)
    for number in range(0, len(source), max(1, len(source) // _COUNT)):
        example = source[number]
        files = {}
        for what, wave in (("source", example.input), ("reference", example.reference)):
            if wave is not None and (what == "source" or command.reference):
                files[what] = folder / f"{command.name}-{number}-{what}.flac"
                audio.write(files[what], wave, INPUT_RATE)
        yield Ready(_told(known[example.provenance["file"]]), **files)


def _spread(entries: list[Entry]) -> list[Entry]:
    return entries[:: max(1, len(entries) // _COUNT)][:_COUNT]


def _told(entry: Entry) -> str:
    return f"{entry.speaker} ({entry.language}): {entry.text}"

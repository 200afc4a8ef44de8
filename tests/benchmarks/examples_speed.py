"""Speed of making training examples on one core, by task, and where the time goes:

    python tests/benchmarks/examples_speed.py corpus/manifest.jsonl --alignments corpus/words.ctm

Cuts are 5 s at 16 kHz. All rooms are made beforehand, as they are after a while of training; what
one costs is printed beside. Tasks that the manifest has no recordings for are left out. Shares are
of wall time and exclude each other.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from data_pipelines import Entry, examples, read_manifest, simulation
from data_pipelines.alignments import Word, read_alignments
from data_pipelines.examples import backgrounds
from data_pipelines.simulation import Rooms, chain, echo
from quark_jax import audio
from quark_jax.errors import UserError

IN_ROOMS = {
    "sr": (examples.SpeechRestoration, Rooms()),
    "tse": (examples.TargetSpeakerExtraction, Rooms()),
    "rtse": (examples.OtherSpeakerExtraction, Rooms()),
    "aec": (examples.EchoCancellation, examples.echo.ECHO_ROOMS),
}
TASKS = tuple(name for name in examples.TASK_SOURCES if name != "edit")


class Clock:
    """Exclusive wall time of the functions it has wrapped, by label."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []

    def wrap(self, place: object, name: str, label: str) -> None:
        call: Callable = getattr(place, name)

        def timed(*args, **kwargs):
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.seconds[label] += taken - self._inner.pop()
                if self._inner:
                    self._inner[-1] += taken

        setattr(place, name, timed)


LABELS = ("decode", "FFT convolution", "noise", "resampling", "voice")


def instrument() -> Clock:
    clock = Clock()
    for name in ("read", "length"):
        clock.wrap(Entry, name, "decode")
    for module in (chain, echo):
        clock.wrap(module, "reverberate", "FFT convolution")
    clock.wrap(backgrounds.Noises, "random", "noise")
    clock.wrap(audio, "resample", "resampling")
    clock.wrap(simulation, "change_voice", "voice")
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", help="speech with speakers, sounds with captions; JSON lines")
    parser.add_argument("--alignments", help="words of the speech, for edit-speech")
    parser.add_argument("--task", default=",".join(TASKS), help="several with commas")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=50, help="different rooms to draw from")
    given = parser.parse_args()
    entries = read_manifest(given.manifest)
    words = read_alignments(given.alignments, entries) if given.alignments else None
    clock = instrument()
    print(f"{len(entries)} recordings; shares of time in %")
    print(f"| task | examples a second and core | {' | '.join(LABELS)} | rest | to make a room |")
    print("|---" * (len(LABELS) + 4) + "|")
    for task in given.task.split(","):
        try:
            source = make(task, entries, given.rooms, words)
        except UserError as error:
            print(f"left out {task}: {error}", file=sys.stderr)
            continue
        room_seconds = make_rooms(source, given.rooms) if task in IN_ROOMS else 0.0
        step = max(1, len(source) // given.examples)
        source[0]
        clock.seconds.clear()
        start = time.perf_counter()
        for number in range(given.examples):
            source[number * step % len(source)]
        taken = time.perf_counter() - start
        shares = [100 * clock.seconds[label] / taken for label in LABELS]
        row = [*shares, 100 - sum(shares)]
        cells = " | ".join(f"{share:.0f}" for share in row)
        print(
            f"| {task} | {given.examples / taken:.0f} | {cells} | {room_seconds:.2f} s |",
            flush=True,
        )


def make(
    task: str, entries: Sequence[Entry], rooms: int, words: dict[str, list[Word]] | None
) -> examples.Source:
    if task not in IN_ROOMS:
        return examples.make_source(task, entries, alignments=words)
    kind, ranges = IN_ROOMS[task]
    speech = [entry for entry in entries if entry.domain in ("", "speech")]
    return kind(speech, rooms=replace(ranges, count=rooms))


def make_rooms(source: object, count: int) -> float:
    """Seconds that one of `count` rooms takes; all are kept."""
    start = time.perf_counter()
    for number in range(count):
        source.responses.get(number)
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()

"""Speed of making training examples on one core, by task, and where the time goes:

    python tests/benchmarks/examples_speed.py corpus/manifest.jsonl

Cuts are 5 s at 16 kHz. All rooms are made beforehand, as they are after a while of training; what
one costs is printed beside. Shares are of wall time and exclude each other.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from data_pipelines import Entry, examples, read_manifest, simulation
from data_pipelines.examples import backgrounds
from data_pipelines.simulation import Rooms, chain, echo
from quark_jax import audio

KINDS = (
    examples.SpeechRestoration,
    examples.TargetSpeakerExtraction,
    examples.OtherSpeakerExtraction,
    examples.VoiceConversion,
    examples.EchoCancellation,
)


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
    parser.add_argument("manifest", help="speech with speakers, JSON lines")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--rooms", type=int, default=50, help="different rooms to draw from")
    given = parser.parse_args()
    entries = [e for e in read_manifest(given.manifest) if e.domain in ("", "speech")]
    clock = instrument()
    print(f"{len(entries)} recordings; shares of time in %")
    print(f"| task | examples a second and core | {' | '.join(LABELS)} | rest | to make a room |")
    print("|---" * (len(LABELS) + 4) + "|")
    for kind in KINDS:
        ranges = examples.echo.ECHO_ROOMS if kind.task == "aec" else Rooms()
        rooms = replace(ranges, count=given.rooms)
        source = kind(entries, **({} if kind.task == "vc" else {"rooms": rooms}))
        room_seconds = make_rooms(source, given.rooms) if kind.task != "vc" else 0.0
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
            f"| {kind.task} | {given.examples / taken:.0f} | {cells} | {room_seconds:.2f} s |",
            flush=True,
        )


def make_rooms(source: object, count: int) -> float:
    """Seconds that one of `count` rooms takes; all are kept."""
    start = time.perf_counter()
    for number in range(count):
        source._responses._get(number)
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()

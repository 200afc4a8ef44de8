"""More voices out of few: recordings of speech once more, each at another speed.

    python -m data_pipelines.speeds corpus.jsonl corpus_speeds.jsonl --audio speeds

Resampling changes pitch, formants and tempo together (Ko et al., "Audio Augmentation for Speech
Recognition", Interspeech 2015), so that the result counts as another speaker. Give the manifest
that is written beside the old one, where several are taken.
"""

import argparse
import math
import random
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from data_pipelines.cuts import why_unusable
from data_pipelines.manifests import Entry, read_manifest, write_manifest
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import UserError

SPEEDS = (0.84, 0.92, 1.09, 1.18)


def at_other_speeds(
    entries: Iterable[Entry],
    folder: str | Path,
    *,
    speeds: Sequence[float] = SPEEDS,
    split: str = "train",
    seed: int = 0,
) -> tuple[list[Entry], dict[Entry, str]]:
    """Each recording of speech (domain "speech" or none) of a split at one of `speeds`.

    Args:
        entries: of the manifest.
        folder: where the audio is put, as FLAC; what is there already is not made again.
        speeds: to choose from; 1.09 is nine per cent faster and higher.
        seed: of the choice.

    Returns:
        The recordings made, with id and speaker "NAME@SPEED"; and those that cannot be read, with
        the reason of each.

    Raises:
        UserError: for a speed that is not positive, or is 1; where there is no speech of the split,
            or the folder cannot be written to.
    """
    if wrong := [speed for speed in speeds if not 0 < speed < math.inf or speed == 1]:
        raise UserError(f"speed {wrong[0]:g}: give positive factors other than 1, as 0.9 1.1")
    chosen = [e for e in entries if e.domain in ("speech", "") and e.split == split]
    if not chosen:
        raise UserError(f"no speech of split {split!r}; check the manifest and --split")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another") from error
    draw = random.Random(seed)
    jobs = [(entry, draw.choice(list(speeds))) for entry in chosen]
    made, unusable = [], {}
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda job: _resampled(*job, folder), jobs)
        bar = tqdm(results, desc="Other speeds", total=len(jobs), unit=" recordings")
        for entry, result in zip(chosen, bar, strict=True):
            if isinstance(result, Entry):
                made.append(result)
            else:
                unusable[entry] = result
    return made, unusable


def _resampled(entry: Entry, speed: float, folder: Path) -> Entry | str:
    """The recording at `speed`, written to `folder`; or why it cannot be read."""
    name = f"{entry.id}@{speed:g}"
    source = f"{entry.path}\n{entry.start}\n{entry.frames}\n{speed:g}"
    path = folder / f"{sha256(source.encode()).hexdigest()[:16]}.flac"
    if not path.exists():
        try:
            rate = entry.rate or audio.info(entry.path).rate
            wave = entry.read(rate)
        except UserError as error:
            return why_unusable(entry, error)
        audio.write(path, audio.resample(wave, round(rate * speed), rate), rate)
    about = audio.info(path)
    return replace(
        entry,
        path=path,
        id=name,
        seconds=about.seconds,
        rate=about.rate,
        channels=about.channels,
        start=0,
        frames=None,
        speaker=entry.speaker and f"{entry.speaker}@{speed:g}",
    )


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.speeds",
        description="Make recordings of speech once more, each at another speed, as other voices.",
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT", help="the manifest to write, as .jsonl")
    parser.add_argument("--audio", type=Path, required=True, help="folder of the new recordings")
    parser.add_argument("--speeds", type=float, nargs="+", default=SPEEDS, metavar="FACTOR")
    parser.add_argument("--split", default="train", help="of the manifest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of speeds")
    given = parser.parse_args()

    def run() -> None:
        made, unusable = at_other_speeds(
            read_manifest(given.manifest),
            given.audio,
            speeds=given.speeds,
            split=given.split,
            seed=given.seed,
        )
        write_manifest(made, given.out)
        hours = sum(entry.seconds for entry in made) / 3600
        print(f"{given.out}: {len(made)} recordings, {hours:.2f} h; {len(unusable)} left out")
        for entry, why in unusable.items():
            print(f"left out: {entry.path}: {why}", file=sys.stderr)

    return guarded(run)


if __name__ == "__main__":
    sys.exit(_main())

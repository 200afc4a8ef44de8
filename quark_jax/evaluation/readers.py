"""Test sets as they lie on disk, clip by clip. Of audio, a reader looks at the length at most."""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from data_pipelines import Entry
from data_pipelines.corpora import Folder, LeftOut
from data_pipelines.corpora import librispeech as librispeech_layout
from data_pipelines.corpora import vctk as vctk_layout
from data_pipelines.corpora.folders import audio_files
from quark_jax import audio
from quark_jax.errors import UserError

_PIECE = 10  # seconds of music
_YOUTUBE = re.compile(r"Y?(?P<id>[\w-]{11})(_[\d.]+)*$")
_FILE_ID = re.compile(r"fileid_(\d+)$")


@dataclass(frozen=True)
class Item:
    """One clip of a test set.

    Attributes:
        id: its name in the set.
        targets: what results are compared with; two of a mixture to be separated.
        input: what the model hears; None: the target.
        reference: enrolment, or the voice to take; or None.
        other: the voice that is not wanted; or None.
        query: what describes the target; or empty.
    """

    id: str
    targets: tuple[Entry, ...]
    input: Entry | None = None
    reference: Entry | None = None
    other: Entry | None = None
    query: str = ""


Found: TypeAlias = Iterator[Item | LeftOut]


def librispeech(place: Path) -> Found:
    """A split of LibriSpeech."""
    yield from _alone(Folder(place, layout=librispeech_layout))


def vctk(place: Path) -> Found:
    """VCTK 0.92 (its first microphone) or 0.80."""
    yield from _alone(Folder(place, layout=vctk_layout))


def vctk_pairs(place: Path) -> Found:
    """VCTK: each utterance, and one of the next speaker as the voice to take."""
    speakers: dict[str, list[Entry]] = {}
    for item in vctk(place):
        if isinstance(item, LeftOut):
            yield item
        else:
            speakers.setdefault(item.targets[0].speaker, []).append(item.targets[0])
    if len(speakers) < 2:
        raise UserError(f"{place}: recordings of one speaker; give those of two or more")
    names = sorted(speakers)
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        voices = speakers[following]
        for number, entry in enumerate(speakers[name]):
            voice = voices[(number + 1) % len(voices)]
            yield Item(f"{entry.id} as {voice.speaker}", (entry,), entry, reference=voice)


def musdb18(place: Path) -> Found:
    """The mixtures of MUSDB18-HQ in pieces of 10 s."""
    for path in sorted(place.glob("*/mixture.wav")):
        header = audio.info(path)
        length = _PIECE * header.rate
        whole = Entry(path, path.parent.name, rate=header.rate, frames=length, domain="music")
        for start in range(0, header.samples - length + 1, length):
            name = f"{whole.id}, {start // header.rate} s"
            yield Item(name, (replace(whole, id=name, start=start),))


def audioset(place: Path) -> Found:
    """Clips of AudioSet; where eval_segments.csv lies above `place`, those that it lists."""
    listed = place.parent / "eval_segments.csv"
    known = None
    if listed.is_file():
        lines = _text(listed).splitlines()
        known = {line.partition(",")[0] for line in lines if line and line[0] != "#"}
    for path in audio_files(place):
        name = _YOUTUBE.match(path.stem)
        if known is not None and (name is None or name["id"] not in known):
            yield LeftOut(str(path), f"is not in {listed}")
        else:
            label = path.relative_to(place).as_posix()
            yield Item(label, (Entry(path, label, domain="audio"),))


def dns2020(place: Path) -> Found:
    """A synthetic test set of the DNS Challenge of 2020."""
    for path in audio_files(place / "noisy"):
        number = _FILE_ID.search(path.stem)
        if number is None:
            yield LeftOut(str(path), "not named ..._fileid_N")
            continue
        clean = place / "clean" / f"clean_fileid_{number[1]}.wav"
        yield _checked(Item(path.stem, (_speech(clean),), _speech(path)))


def two_speakers(mixtures: str) -> Callable[[Path], Found]:
    """Of a folder `mixtures` beside s1 and s2."""

    def read(place: Path) -> Found:
        for path in audio_files(place / mixtures):
            targets = tuple(_speech(place / part / path.name) for part in ("s1", "s2"))
            yield _checked(Item(path.stem, targets, _speech(path)))

    return read


def libri2mix_enrolled(place: Path) -> Found:
    """Both speakers of each mixture of Libri2Mix, with the enrolments of SpeakerBeam."""
    listed = place / "map_mixture2enrollment"
    for number, line in enumerate(_text(listed).splitlines(), 1):
        match line.split():
            case [mixture, utterance, enrolment] if utterance in mixture.split("_"):
                wanted = 1 + mixture.split("_").index(utterance)
                target, other = (place / f"s{i}" / f"{mixture}.wav" for i in (wanted, 3 - wanted))
                item = Item(
                    f"{mixture}, {utterance}",
                    (_speech(target),),
                    _speech(place / "mix_clean" / f"{mixture}.wav"),
                    reference=_speech(place / f"{enrolment}.wav"),
                    other=_speech(other),
                )
                yield _checked(item)
            case _:
                raise UserError(
                    f"{listed}:{number}: {line!r}; a line is MIXTURE UTTERANCE s1/ID or s2/ID"
                )


def audiosep(place: Path) -> Found:
    """AudioSep's mixtures of AudioCaps, by caption."""
    listed = place / "metadata" / "audiocaps_eval.csv"
    rows = csv.DictReader(_text(listed).splitlines())
    if missing := {"idx", "caption"} - set(rows.fieldnames or ()):
        raise UserError(f"{listed}:1: no column {', '.join(sorted(missing))}; give AudioSep's file")
    folder = place / "data" / "audiocaps"
    for row in rows:
        files = (folder / f"{part}-{row['idx']}.wav" for part in ("segment", "mixture"))
        target, mixture = (Entry(path, path.stem, domain="audio") for path in files)
        yield _checked(Item(row["idx"], (target,), mixture, query=row["caption"]))


def _alone(corpus: Folder) -> Found:
    for entry in corpus:
        if isinstance(entry, LeftOut):
            yield entry
        elif not entry.path.stem.endswith("_mic2"):
            yield Item(entry.id, (entry,))


def _speech(path: Path) -> Entry:
    return Entry(path, path.stem, domain="speech", language="en")


def _checked(item: Item) -> Item | LeftOut:
    """The item, if all its files are there."""
    for entry in (item.input, *item.targets, item.reference, item.other):
        if entry is not None and not entry.path.is_file():
            return LeftOut(item.id, f"{entry.path} is missing")
    return item


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}); put it there") from error

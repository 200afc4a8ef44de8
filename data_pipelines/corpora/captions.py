"""Sets of captioned sounds: lists of captions, joined with a folder of audio.

Every set is a corpus whose entries carry all captions of a clip. A clip without audio, audio
without a caption, and a clip that is listed twice are left out, with the reason. Files are found by
name without suffix, so that a set converted to another format is still found.
"""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from data_pipelines.corpora.base import LeftOut
from data_pipelines.corpora.folders import audio_files
from data_pipelines.manifests import AnyPath, Entry, in_bucket
from quark_jax.errors import UserError

_CLIP_SECONDS = 10  # of AudioCaps
_WAVCAPS_SOURCES = {
    "as_final": "AudioSet_SL",
    "bbc_final": "BBC_Sound_Effects",
    "fsd_final": "FreeSound",
    "sb_final": "SoundBible",
}


@dataclass(frozen=True)
class Clip:
    """What a list says of one sound.

    Attributes:
        names: names the file may have, without suffix; the first that is there counts.
        about: fields of its `Entry`.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    about: dict[str, str]


class CaptionSet(ABC):
    """Captioned clips: lists of captions, joined with a folder of audio.

    Args:
        lists: the files of captions, as published.
        audio: the folder that holds the clips of all lists.
    """

    def __init__(self, lists: Iterable[str | PathLike], audio: str | PathLike):
        self.lists = [epath.Path(path) for path in lists]
        self.audio = epath.Path(audio) if in_bucket(audio) else Path(audio)

    @abstractmethod
    def clips(self, listed: epath.Path) -> Iterable[Clip]:
        """The clips of a list, in its order."""

    def folder(self, listed: epath.Path) -> AnyPath:
        """Where the clips of a list lie."""
        return self.audio

    def __iter__(self) -> Iterator[Entry | LeftOut]:
        together: dict[AnyPath, list[epath.Path]] = {}
        for listed in self.lists:
            together.setdefault(self.folder(listed), []).append(listed)
        for folder, lists in together.items():
            yield from self._join(folder, lists)

    def _join(self, folder: AnyPath, lists: list[epath.Path]) -> Iterator[Entry | LeftOut]:
        files: dict[str, AnyPath] = {}
        for path in audio_files(folder):
            if files.setdefault(path.stem, path) is not path:
                yield LeftOut(str(path), f"{files[path.stem]} has the same name; rename one")
        used = set()
        for listed in lists:
            for clip in self.clips(listed):
                stem = next((name for name in clip.names if name in files), None)
                label = f"{listed.name}: {clip.names[0]}"
                if stem is None:
                    yield LeftOut(label, f"no audio of this name in {folder}")
                elif stem in used:
                    yield LeftOut(label, "listed twice; the first is taken")
                else:
                    used.add(stem)
                    path = files[stem]
                    about = {"domain": "audio", "language": "en", "id": path.name} | clip.about
                    yield Entry(path, captions=tuple(dict.fromkeys(clip.captions)), **about)
        names = ", ".join(listed.name for listed in lists)
        for stem, path in files.items():
            if stem not in used:
                yield LeftOut(str(path), f"no caption in {names}")


class AudioCaps(CaptionSet):
    """AudioCaps, 1.0 or 2.0: audiocap_id,youtube_id,start_time,caption in train.csv, val.csv,
    test.csv; the captions of one clip stand in several rows.

    Files may be called after the YouTube id (with or without a Y before it, or the start and end in
    seconds or milliseconds after it), or after the audiocap_id of any of the rows.
    """

    columns = ("audiocap_id", "youtube_id", "start_time", "caption")

    def clips(self, listed: epath.Path) -> Iterable[Clip]:
        rows: dict[tuple[str, str], list[dict[str, str]]] = {}
        for line, row in _csv_rows(listed, self.columns, filled=4):
            if not row["start_time"].isdigit():
                raise UserError(
                    f"{listed}:{line}: start_time is {row['start_time']!r}; it has to be "
                    "whole seconds"
                )
            rows.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
        for (video, start), some in rows.items():
            end = int(start) + _CLIP_SECONDS
            yield Clip(
                names=(
                    *(f"{letter}{video}" for letter in ("", "Y")),
                    *(f"{letter}{video}_{start}" for letter in ("", "Y")),
                    *(f"{letter}{video}_{start}_{end}" for letter in ("", "Y")),
                    *(f"{letter}{video}_{start}000_{end}000" for letter in ("", "Y")),
                    *(row["audiocap_id"] for row in some),
                ),
                captions=tuple(row["caption"] for row in some),
                about={
                    "split": _split(listed.stem),
                    "source": f"AudioCaps: YouTube {video}, from {start} s",
                },
            )


class Clotho(CaptionSet):
    """Clotho: file_name,caption_1,...,caption_5 in clotho_captions_SPLIT.csv. Where
    clotho_metadata_SPLIT.csv lies beside it, it gives licence and source."""

    columns = ("file_name", *(f"caption_{number}" for number in range(1, 6)))

    def clips(self, listed: epath.Path) -> Iterable[Clip]:
        metadata = self._metadata(listed)
        for _, row in _csv_rows(listed, self.columns, filled=2):
            known = metadata.get(row["file_name"], {})
            link = known.get("sound_link", "")
            yield Clip(
                names=(PurePath(row["file_name"]).stem,),
                captions=tuple(row[column] for column in self.columns[1:] if row[column]),
                about={
                    "split": _split(listed.stem.rpartition("_")[2]),
                    "licence": known.get("license", ""),
                    "source": f"Clotho: {link}" if link else "Clotho",
                },
            )

    def _metadata(self, listed: epath.Path) -> dict[str, dict[str, str]]:
        path = listed.with_name(listed.name.replace("_captions_", "_metadata_"))
        if path == listed or not path.exists():
            return {}
        columns = ("file_name", "sound_link", "license")
        return {row["file_name"]: row for _, row in _csv_rows(path, columns, filled=1)}


class WavCaps(CaptionSet):
    """WavCaps: {"data": [{"id", "caption", "duration", ...}]} in as_final.json, bbc_final.json,
    fsd_final.json, sb_final.json. A file is called after the id; an id of AudioSet ends in .wav.

    Of an audio folder with subfolders for the sources (FreeSound or FreeSound_flac, and so on) the
    one of this list is searched.
    """

    def clips(self, listed: epath.Path) -> Iterable[Clip]:
        source = _WAVCAPS_SOURCES.get(listed.stem, "WavCaps")
        for number, item in enumerate(_json_items(listed)):
            captions = item.get("caption") if isinstance(item, dict) else None
            captions = [captions] if isinstance(captions, str) else captions
            if not (
                isinstance(captions, list)
                and all(isinstance(caption, str) for caption in captions)
                and isinstance(item.get("id"), str | int)
            ):
                raise UserError(
                    f"{listed}: data[{number}] has no 'id' and 'caption'; give a file of "
                    "WavCaps as published"
                )
            known = str(item["id"])
            yield Clip(
                names=(known.removesuffix(".wav"),),
                captions=tuple(captions),
                about={"source": f"{source}: {known}"},
            )

    def folder(self, listed: epath.Path) -> AnyPath:
        source = _WAVCAPS_SOURCES.get(listed.stem)
        for name in (f"{source}_flac", source) if source else ():
            if (self.audio / name).is_dir():
                return self.audio / name
        return self.audio


class Esc50(CaptionSet):
    """ESC-50: filename,fold,target,category,... in esc50.csv. The category is the caption."""

    def clips(self, listed: epath.Path) -> Iterable[Clip]:
        columns = ("filename", "fold", "category", "src_file")
        for _, row in _csv_rows(listed, columns, filled=4):
            yield Clip(
                names=(PurePath(row["filename"]).stem,),
                captions=(row["category"].replace("_", " "),),
                about={
                    "split": f"fold{row['fold']}",
                    "source": f"ESC-50: Freesound {row['src_file']}",
                },
            )


CAPTION_SETS: dict[str, type[CaptionSet]] = {
    "audiocaps": AudioCaps,
    "clotho": Clotho,
    "wavcaps": WavCaps,
    "esc50": Esc50,
}


def _split(name: str) -> str:
    """The splits of the sets, of which those to train on have a name in common."""
    return "train" if name in ("train", "development") else name


def _csv_rows(
    path: epath.Path, columns: tuple[str, ...], *, filled: int
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with at least these columns, the first `filled` of which
    must not be empty."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1  # where the row begins, for a text may span several lines
    try:
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise UserError(
                f"{path}:1: no column {', '.join(sorted(missing))}; the first line has to name "
                f"{', '.join(columns)}"
            )
        line = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}:{line}: {'more' if None in row else 'fewer'} fields than the first "
                    "line; quote texts that hold commas"
                )
            if empty := [column for column in columns[:filled] if not row[column].strip()]:
                raise UserError(f"{path}:{line}: {empty[0]} is empty; complete or remove the row")
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV ({error}); correct it") from error


def _json_items(path: epath.Path) -> list[Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); download it again"
        ) from error
    items = value.get("data") if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise UserError(f'{path}: holds no list "data"; give a file of WavCaps as published')
    return items


def _text(path: epath.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{fspath(path)}: cannot be read ({error.strerror or error}); check the path"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:  # Clotho's metadata
        return content.decode("latin-1")

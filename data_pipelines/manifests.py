"""Manifests: which recordings a corpus holds, one line each.

Read: JSON lines, and the scp lists in use in the field (`utt path`, `utt speaker path`,
`utt rate start frames path`). Written: JSON lines. `data_pipelines.corpora` makes them.

Manifests and audio may lie in a cloud bucket (gs://, s3://), read through etils.epath.
"""

import json
import os
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from sys import intern
from typing import TypeAlias

import numpy as np
import soundfile
from etils import epath

from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.files import in_bucket, replacing

AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".w64")
)
_PAUSES = (1.0, 4.0)  # seconds between the tries to fetch a file

AnyPath: TypeAlias = Path | epath.Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One recording, or a section of one.

    Attributes:
        path: the audio file, here or in a bucket.
        id: its name within the corpus; the path as written in the manifest where none is given.
        seconds: duration; None where unknown.
        rate: sample rate of the file in Hz; None where unknown.
        channels: number of channels; None where unknown.
        start: first sample of the section, at `rate`.
        frames: samples in the section, at `rate`; None for all that follow `start`.
        speaker, text, language, licence, source: as the corpus says; empty where it says nothing.
        domain: "speech", "music", "audio" or another name of the corpus's own; empty for unknown.
        split: "train", "heldout" or another name of the corpus's own.
        captions: descriptions of what sounds, each of the whole recording; `text` is what is
            spoken in it.
    """

    path: AnyPath
    id: str
    seconds: float | None = None
    rate: int | None = None
    channels: int | None = None
    start: int = 0
    frames: int | None = None
    speaker: str = ""
    text: str = ""
    language: str = ""
    split: str = "train"
    licence: str = ""
    source: str = ""
    domain: str = ""
    captions: tuple[str, ...] = ()

    def read(self, rate: int, *, start: int = 0, samples: int | None = None) -> np.ndarray:
        """The recording, or `samples` samples of it from `start`, as one channel.

        A part is exactly that slice of the whole. It is read alone where `length` gives a number;
        else all is decoded, for resampled and lossy audio differs by where decoding begins, and
        a file in a bucket is fetched in one piece.

        Returns:
            float32 [samples] at `rate` Hz; fewer than asked for at the end of the recording.

        Raises:
            UserError: if the file cannot be read, its rate is not the one the manifest gives, or
                the section lies beyond its end.
        """
        if samples is not None and (part := self._read_part(rate, start, samples)) is not None:
            return part
        stop = None if samples is None else start + samples
        return self._read_whole(rate)[start:stop]

    def length(self, rate: int) -> int | None:
        """Samples at `rate` Hz, from the header; None where only decoding all of it can tell:
        where it has to be resampled, is lossy, or lies in a bucket.

        Raises:
            UserError: if the file cannot be opened.
        """
        if in_bucket(self.path):
            return None
        audio.info(self.path)  # for its errors
        header = soundfile.info(self.path)
        if self.rate not in (None, rate) or not _is_pcm(header.samplerate, header.subtype, rate):
            return None
        return header.frames - self.start if self.frames is None else self.frames

    def _read_part(self, rate: int, start: int, samples: int) -> np.ndarray | None:
        """None where it cannot be read alone, is not there, or is damaged: reading the whole then
        gives it, or says what is wrong."""
        if self.rate not in (None, rate) or in_bucket(self.path):
            return None
        if self.frames is not None and start + samples > self.frames:
            return None
        try:
            with soundfile.SoundFile(self.path) as file:
                if not _is_pcm(file.samplerate, file.subtype, rate):
                    return None
                file.seek(self.start + start)
                block = file.read(samples, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError):
            return None
        if len(block) < samples or not np.isfinite(block).all():
            return None
        return block.mean(axis=1, dtype=np.float32)

    def _read_whole(self, rate: int) -> np.ndarray:
        with local_copy(self.path) as path:
            if self.start == 0 and self.frames is None:
                return audio.read(path, rate=rate)[0]
            wave, file_rate = audio.read(path)
        if self.rate not in (None, file_rate):
            raise UserError(
                f"{self.path}: {file_rate} Hz, but the manifest's section is given at "
                f"{self.rate} Hz; correct the manifest"
            )
        stop = len(wave) if self.frames is None else self.start + self.frames
        if not self.start < stop <= len(wave):
            raise UserError(
                f"{self.path}: samples {self.start} to {stop} are not in its {len(wave)}; "
                "correct the manifest"
            )
        return audio.resample(wave[self.start : stop], file_rate, rate)


def read_manifest(
    path: str | os.PathLike, *more: str | os.PathLike, root: str | os.PathLike | None = None
) -> list[Entry]:
    """All entries of a manifest, or of several; arguments and errors as those of
    `iterate_manifest`.

    Raises:
        UserError: also if two entries have one id.
    """
    places: dict[str, AnyPath] = {}
    entries = []
    for manifest in (path, *more):
        for entry in iterate_manifest(manifest, root=root):
            if entry.id in places:
                raise UserError(
                    f"{manifest}: id {entry.id!r} is that of {places[entry.id]} and of "
                    f"{entry.path}; give each an id of its own (corpora that are joined: scan each "
                    "with a --name)"
                )
            places[entry.id] = entry.path
            entries.append(entry)
    return entries


def iterate_manifest(
    path: str | os.PathLike, *, root: str | os.PathLike | None = None
) -> Iterator[Entry]:
    """Reads a manifest line by line: JSON lines, or one of the three scp forms; empty lines are
    passed over.

    Args:
        path: the manifest.
        root: the folder that all audio must lie in, and that relative paths start from. None: they
            start from the manifest's own folder and must stay in it; absolute paths are free.

    Raises:
        UserError: naming file and line, for a line that is malformed or a path that leaves its
            root; also if there is no such manifest or it lists nothing.
    """
    base = _base(epath.Path(path).parent if root is None else root)
    number = entries = 0
    try:
        with epath.Path(path).open("r", encoding="utf-8") as file:
            for line in file:
                number += 1
                if line.strip():
                    yield _parse(line, base, free=root is None)
                    entries += 1
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read the manifest ({reason}); check the path") from error
    except _BadLine as error:
        raise UserError(f"{path}:{number}: {error}") from error
    if not entries:
        raise UserError(f"{path}: the manifest lists no recordings; make it again")


def write_manifest(entries: Iterable[Entry], path: str | os.PathLike) -> None:
    """Writes JSON lines, paths relative to the manifest's folder where they lie in it.

    The file is written beside its place and renamed, so that a failed write leaves an older one.
    """
    base = _base(epath.Path(path).parent)
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(_to_line(entry, base))


class Unreachable(UserError):
    """A file cannot be fetched or read; another time it may be."""


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """The file itself where it is here; of one in a bucket a temporary copy, fetched in one
    request: recordings are small, and decoders seek.

    Raises:
        Unreachable: if it cannot be fetched, three times in 5 s.
        UserError: if it is not there, or the block raises it; it names the file in the bucket.
    """
    if not in_bucket(path):
        yield Path(path)
        return
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
        copy.write(_fetch(epath.Path(path)))
        copy.flush()
        try:
            yield Path(copy.name)
        except UserError as error:
            raise UserError(str(error).replace(copy.name, str(path))) from error


def _fetch(path: epath.Path) -> bytes:
    """What a file in a bucket holds. Raises as `local_copy`."""
    for pause in (*_PAUSES, None):
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; check the path") from error
        except Exception as error:  # the libraries of the clouds have many of their own
            if pause is None or isinstance(error, ImportError | PermissionError):
                raise Unreachable(
                    f"{path}: cannot be fetched ({error}); check network and credentials, and "
                    "that gcsfs (gs://) or s3fs (s3://) is installed"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _is_pcm(file_rate: int, subtype: str, rate: int) -> bool:
    """Whether decoding may begin anywhere in such a file and gives the same samples at `rate`."""
    return file_rate == rate and subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))


class _BadLine(ValueError):
    """What is wrong with a line."""


_KINDS = {field.name: field.type for field in fields(Entry)}
_KINDS |= {"path": str, "captions": list, "seconds": float | int | None}
_REPEATED = ("speaker", "language", "split", "licence", "domain")


def _parse(line: str, base: str, *, free: bool) -> Entry:
    record = _parse_json(line) if line.lstrip().startswith("{") else _parse_scp(line)
    record["path"] = _resolve(record["path"], base, free=free)
    for name in _REPEATED:  # kept once in memory
        if name in record:
            record[name] = intern(record[name])
    return Entry(**record)


def _to_line(entry: Entry, base: str) -> str:
    record = {name: getattr(entry, name) for name in _KINDS}
    record = {name: value for name, value in record.items() if value not in (None, "", ())}
    place = _absolute(entry.path)
    record["path"] = place[len(base) :] if place.startswith(base) else place
    return json.dumps(record, ensure_ascii=False) + "\n"


def _parse_json(line: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON ({error.msg}); give one object a line") from error
    for name, value in record.items():
        if name not in _KINDS:
            raise _BadLine(f"unknown field {name!r}; known are {', '.join(_KINDS)}")
        kind = _KINDS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _BadLine(f"field {name!r} is {value!r}; it has to be of type {_name(kind)}")
    if not record.get("path"):
        raise _BadLine("field 'path' is missing; every line needs one")
    if not all(isinstance(text, str) and text.strip() for text in record.get("captions", ())):
        raise _BadLine("field 'captions' has to be a list of texts, none of them empty")
    record["captions"] = tuple(record.get("captions", ()))
    return _checked({"id": record["path"]} | record)


def _parse_scp(line: str) -> dict:
    match line.split():
        case [utterance, path]:
            return {"id": utterance, "path": path}
        case [utterance, speaker, path]:
            return {"id": utterance, "speaker": speaker, "path": path}
        case [utterance, rate, start, frames, path]:
            try:
                numbers = {"rate": int(rate), "start": int(start), "frames": int(frames)}
            except ValueError as error:
                raise _BadLine(
                    f"rate, start and frames are {rate}, {start}, {frames}; give whole numbers"
                ) from error
            record = _checked({"id": utterance, "path": path} | numbers)
            return record | {"seconds": record["frames"] / record["rate"]}
        case parts:
            raise _BadLine(
                f"{len(parts)} fields; an scp line is 'utt path', 'utt speaker path' or "
                "'utt rate start frames path' (for paths with spaces use JSON lines)"
            )


def _checked(record: dict) -> dict:
    """The record, if its numbers are possible."""
    for name, least in {"seconds": 0, "rate": 1, "channels": 1, "start": 0, "frames": 1}.items():
        value = record.get(name)
        if value is not None and not least <= value < float("inf"):
            raise _BadLine(f"field {name!r} is {value}; it has to be at least {least}")
    return record


def _resolve(text: str, base: str, *, free: bool) -> AnyPath:
    """The place of an audio file; refused where it leaves the base by its name."""
    absolute = in_bucket(text) or text.startswith("/")
    place = _absolute(text if absolute else base + text)
    if not place.startswith(base) and not (free and absolute):
        raise _BadLine(f"path {text!r} leaves {base}; keep the audio below it")
    return epath.Path(place) if in_bucket(place) else Path(place)


def _base(folder: str | os.PathLike) -> str:
    """What the paths of all that lies in a folder begin with."""
    return posixpath.join(_absolute(folder), "")


def _absolute(path: str | os.PathLike) -> str:
    """Without `..`, and without following links: corpora are often linked together."""
    if in_bucket(path):
        scheme, _, place = os.fspath(path).partition("://")
        return f"{scheme}://{posixpath.normpath(place)}"
    return os.path.abspath(path)  # noqa: PTH100 (a Path costs ten times as much)


def _name(kind: type) -> str:
    return getattr(kind, "__name__", str(kind))

"""Manifests: which recordings a corpus holds, one line each.

Read: JSON lines, and the scp lists in use in the field (`utt path`, `utt speaker path`,
`utt rate start frames path`). Written: JSON lines.

    python -m data_pipelines.manifests FOLDER OUT.jsonl --language en --licence CC0-1.0

makes a manifest of all audio below a folder and lists the files that cannot be used, with reasons.
"""

import argparse
import json
import os
import sys
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data_pipelines.simulation import is_silent
from quark_jax import audio
from quark_jax.commands import guarded
from quark_jax.errors import UserError

AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".w64")
)


@dataclass(frozen=True)
class Entry:
    """One recording, or a section of one.

    Attributes:
        path: the audio file.
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

    path: Path
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
        else all is decoded, for resampled and lossy audio differs by where decoding begins.

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
        where it has to be resampled, or is lossy.

        Raises:
            UserError: if the file cannot be opened.
        """
        audio.info(self.path)  # for its errors
        header = soundfile.info(self.path)
        if self.rate not in (None, rate) or not _is_pcm(header, rate):
            return None
        return header.frames - self.start if self.frames is None else self.frames

    def _read_part(self, rate: int, start: int, samples: int) -> np.ndarray | None:
        """None where it cannot be read alone, is not there, or is damaged: reading the whole then
        gives it, or says what is wrong."""
        if self.rate not in (None, rate):
            return None
        if self.frames is not None and start + samples > self.frames:
            return None
        try:
            with soundfile.SoundFile(self.path) as file:
                if not _is_pcm(file, rate):
                    return None
                file.seek(self.start + start)
                block = file.read(samples, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError):
            return None
        if len(block) < samples or not np.isfinite(block).all():
            return None
        return block.mean(axis=1, dtype=np.float32)

    def _read_whole(self, rate: int) -> np.ndarray:
        if self.start == 0 and self.frames is None:
            return audio.read(self.path, rate=rate)[0]
        wave, file_rate = audio.read(self.path)
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


@dataclass(frozen=True)
class ScanResult:
    """What `scan` found: `entries` that can be used, and (path, reason) of each that cannot."""

    entries: list[Entry]
    rejected: list[tuple[Path, str]]


def read_manifest(path: str | Path, *, root: str | Path | None = None) -> list[Entry]:
    """Reads a manifest: JSON lines, or one of the three scp forms; empty lines are passed over.

    Args:
        path: the manifest.
        root: the folder that all audio must lie in, and that relative paths start from. None: they
            start from the manifest's own folder and must stay in it; absolute paths are free.

    Raises:
        UserError: naming file and line, for a line that is malformed or a path that leaves its
            root; also if there is no such manifest or it lists nothing.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read the manifest ({reason}); check the path") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _parse_json(line) if line.lstrip().startswith("{") else _parse_scp(line)
            record["path"] = _resolve(record["path"], path.parent, root)
            entries.append(Entry(**record))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    if not entries:
        raise UserError(f"{path}: the manifest lists no recordings; make it again")
    return entries


def write_manifest(entries: Iterable[Entry], path: str | Path) -> None:
    """Writes JSON lines, paths relative to the manifest's folder where they lie in it.

    The file is written beside its place and renamed, so that a failed write leaves an older one.
    """
    path = Path(path)
    base = _absolute(path.parent)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for entry in entries:
                record = {k: v for k, v in asdict(entry).items() if v not in (None, "", ())}
                place = _absolute(entry.path)
                inside = place.is_relative_to(base)
                record["path"] = (place.relative_to(base) if inside else place).as_posix()
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        beside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the manifest ({error.strerror}); check its folder"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def scan(
    folder: str | Path,
    *,
    language: str = "",
    licence: str = "",
    split: str = "train",
    workers: int | None = None,
    progress: bool = True,
) -> ScanResult:
    """Decodes every audio file below `folder` and lists it, in the order of the paths.

    Args:
        folder: searched with all its subfolders for files with the suffix of an audio format.
        language, licence, split: written to every entry.
        workers: files decoded at the same time; None for one a core.
        progress: show a progress bar.

    Raises:
        UserError: if there is no such folder, or no audio file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise UserError(f"{folder}: no audio files; looked for {', '.join(sorted(AUDIO_SUFFIXES))}")

    def examine(path: Path) -> Entry | str:
        try:
            found = audio.info(path)
            # A list, not any(): damage after the first audible block has to be met as well.
            if all([is_silent(block) for block in audio.read_blocks(path)]):
                return "silent"
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        return Entry(
            path=path,
            id=path.relative_to(folder).as_posix(),
            seconds=round(found.seconds, 4),
            rate=found.rate,
            channels=found.channels,
            language=language,
            licence=licence,
            split=split,
        )

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(examine, paths),
            total=len(paths),
            desc="Scanning",
            unit=" files",
            disable=not progress,
        )
        found = list(zip(paths, bar, strict=True))
    return ScanResult(
        entries=[entry for _, entry in found if isinstance(entry, Entry)],
        rejected=[(path, reason) for path, reason in found if isinstance(reason, str)],
    )


def _is_pcm(file: soundfile.SoundFile | soundfile._SoundFileInfo, rate: int) -> bool:
    """Whether decoding may begin anywhere in the file and gives the same samples at `rate`."""
    return file.samplerate == rate and file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))


def _parse_json(line: str) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}); give one object a line") from error
    kinds = {field.name: field.type for field in fields(Entry)} | {"path": str, "captions": list}
    for name, value in record.items():
        if name not in kinds:
            raise ValueError(f"unknown field {name!r}; known are {', '.join(kinds)}")
        kind = kinds[name] if name != "seconds" else float | int | None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"field {name!r} is {value!r}; it has to be of type {_name(kind)}")
    if not record.get("path"):
        raise ValueError("field 'path' is missing; every line needs one")
    if not all(isinstance(text, str) and text.strip() for text in record.get("captions", ())):
        raise ValueError("field 'captions' has to be a list of texts, none of them empty")
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
                raise ValueError(
                    f"rate, start and frames are {rate}, {start}, {frames}; give whole numbers"
                ) from error
            record = _checked({"id": utterance, "path": path} | numbers)
            return record | {"seconds": record["frames"] / record["rate"]}
        case parts:
            raise ValueError(
                f"{len(parts)} fields; an scp line is 'utt path', 'utt speaker path' or "
                "'utt rate start frames path' (for paths with spaces use JSON lines)"
            )


def _checked(record: dict) -> dict:
    """The record, if its numbers are possible."""
    for name, least in {"seconds": 0, "rate": 1, "channels": 1, "start": 0, "frames": 1}.items():
        value = record.get(name)
        if value is not None and not least <= value < float("inf"):
            raise ValueError(f"field {name!r} is {value}; it has to be at least {least}")
    return record


def _resolve(text: str, folder: Path, root: str | Path | None) -> Path:
    """The place of an audio file; refused where it leaves the root by its name."""
    base = _absolute(folder if root is None else root)
    place = _absolute(base / text)
    free = root is None and Path(text).is_absolute()
    if not free and not place.is_relative_to(base):
        raise ValueError(f"path {text!r} leaves {base}; keep the audio below it")
    return place


def _absolute(path: str | Path) -> Path:
    """Without `..`, and without following links: corpora are often linked together."""
    return Path(os.path.normpath(Path(path).absolute()))


def _name(kind: type) -> str:
    return getattr(kind, "__name__", str(kind))


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.manifests",
        description="Make a manifest (JSON lines) of all audio below a folder.",
    )
    parser.add_argument("folder", type=Path, help="searched with all its subfolders")
    parser.add_argument("out", type=Path, help="the manifest to write, as .jsonl")
    parser.add_argument("--language", default="", help="written to every line, e.g. en")
    parser.add_argument("--licence", default="", help="written to every line, e.g. CC-BY-4.0")
    parser.add_argument("--split", default="train", help="written to every line (default: train)")
    parser.add_argument("--workers", type=int, help="files decoded at once (default: one a core)")
    given = parser.parse_args()
    return guarded(lambda: _scan_and_write(given))


def _scan_and_write(given: argparse.Namespace) -> None:
    result = scan(
        given.folder,
        language=given.language,
        licence=given.licence,
        split=given.split,
        workers=given.workers,
    )
    for path, reason in result.rejected:
        print(f"left out {path}: {reason}", file=sys.stderr)
    if not result.entries:
        raise UserError(f"{given.folder}: none of its audio files can be used")
    write_manifest(result.entries, given.out)
    hours = sum(entry.seconds for entry in result.entries) / 3600
    print(
        f"{given.out}: {len(result.entries)} recordings, {hours:.2f} h; "
        f"{len(result.rejected)} left out"
    )


if __name__ == "__main__":
    sys.exit(_main())

"""A folder of audio, with speaker and text by the layouts of the field."""

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from etils import epath

from data_pipelines.corpora.base import LeftOut
from data_pipelines.manifests import AUDIO_SUFFIXES, AnyPath, Entry, in_bucket
from quark_jax.errors import UserError

_FIELDS = ("id", "speaker", "text", "language", "split", "licence", "source", "domain")
_VCTK_NAME = re.compile(r"(?P<utterance>(?P<speaker>[ps]\d+)_\d+)(_mic\d)?$")
_LIBRISPEECH_NAME = re.compile(r"(?P<speaker>\d+)-(?P<chapter>\d+)-\d+$")

Layout: TypeAlias = Callable[[AnyPath, AnyPath], dict[str, str] | str]
"""(folder of the corpus, audio file) -> fields of its entry, or why it is left out."""


class Folder:
    """All audio below a folder, here or in a bucket, in the order of the names; links to folders
    are not followed.

    Args:
        folder: searched with all its subfolders for files with the suffix of an audio format.
        layout: tells speaker, text and more from a path; None tells nothing.
        text_suffix: of files beside the recordings that hold what is spoken, as ".txt" or
            ".normalized.txt"; None where there are none.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        layout: Layout | None = None,
        text_suffix: str | None = None,
    ):
        self.folder = epath.Path(folder) if in_bucket(folder) else Path(folder)
        self._layout, self._text_suffix = layout, text_suffix

    def __iter__(self) -> Iterator[Entry | LeftOut]:
        empty = True
        for path in audio_files(self.folder):
            empty = False
            about = self._layout(self.folder, path) if self._layout else {}
            if isinstance(about, str):
                yield LeftOut(str(path), about)
                continue
            if self._text_suffix is not None:
                about = about | {"text": read_text(path.with_suffix(self._text_suffix))}
            yield Entry(path, **{"id": path.relative_to(self.folder).as_posix()} | about)
        if empty:
            raise UserError(
                f"{self.folder}: no audio files; looked for {', '.join(sorted(AUDIO_SUFFIXES))}"
            )


def audio_files(folder: AnyPath) -> Iterator[AnyPath]:
    """The audio files below a folder, in a fixed order.

    Raises:
        UserError: if the folder, or one below it, is missing or cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path")

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
        ) from error

    walk = folder.walk(on_error=refuse) if in_bucket(folder) else os.walk(folder, onerror=refuse)
    for place, folders, files in walk:
        folders.sort()  # the order of going down
        place = os.fspath(place)
        if in_bucket(folder) and not in_bucket(place):  # fsspec leaves the scheme away
            place = f"{os.fspath(folder).partition('://')[0]}://{place}"
        for name in sorted(files):
            if Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield type(folder)(place) / name


def librispeech(folder: AnyPath, path: AnyPath) -> dict[str, str] | str:
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac, with texts in SPEAKER-CHAPTER.trans.txt."""
    name = _LIBRISPEECH_NAME.match(path.stem)
    if name is None:
        return "not named SPEAKER-CHAPTER-UTTERANCE as LibriSpeech does"
    texts = _transcripts(path.with_name(f"{name['speaker']}-{name['chapter']}.trans.txt"))
    about = {"speaker": name["speaker"], "text": texts.get(path.stem, ""), "language": "en"}
    return about | {"domain": "speech"}


def vctk(folder: AnyPath, path: AnyPath) -> dict[str, str] | str:
    """.../pNNN/pNNN_UTTERANCE[_micN].flac (or .wav), with texts in txt/pNNN/pNNN_UTTERANCE.txt."""
    name = _VCTK_NAME.match(path.stem)
    if name is None:
        return "not named SPEAKER_UTTERANCE as VCTK does"
    text = read_text(folder / "txt" / name["speaker"] / f"{name['utterance']}.txt")
    return {"speaker": name["speaker"], "text": text, "language": "en", "domain": "speech"}


def by_pattern(pattern: str) -> Layout:
    """A layout by a regular expression with named groups, as `(?P<speaker>[^/]+)/`, searched in the
    path below the folder of the corpus.

    Raises:
        UserError: for a bad expression, or a group that is no field of an entry.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: {error}; correct the expression") from error
    unknown = set(compiled.groupindex) - set(_FIELDS)
    if unknown or not compiled.groupindex:
        raise UserError(
            f"pattern {pattern!r}: name groups after the fields {', '.join(_FIELDS)}, "
            "as (?P<speaker>[^/]+)/"
        )

    def layout(folder: AnyPath, path: AnyPath) -> dict[str, str] | str:
        found = compiled.search(path.relative_to(folder).as_posix())
        if found is None:
            return f"its path does not match the pattern {pattern!r}"
        return {name: text for name, text in found.groupdict().items() if text is not None}

    return layout


LAYOUTS: dict[str, Layout] = {"librispeech": librispeech, "vctk": vctk}


def read_text(path: AnyPath) -> str:
    """What a text file says, in one line; empty where there is no such file.

    Raises:
        UserError: if it cannot be read as UTF-8.
    """
    try:
        return " ".join(path.read_bytes().decode("utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}); correct or remove it") from error


@lru_cache(maxsize=4)  # the files of a chapter come one after the other
def _transcripts(path: AnyPath) -> dict[str, str]:
    """Of a file of lines `UTTERANCE TEXT`; empty where there is none."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}); correct or remove it") from error
    return {name: text.strip() for name, _, text in (line.partition(" ") for line in lines)}

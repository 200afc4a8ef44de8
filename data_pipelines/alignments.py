"""Word alignments: which word is said when. Read from CTM and TextGrid files, or computed.

    python -m data_pipelines.alignments MANIFEST OUT.ctm

aligns the texts of a manifest to its recordings with PocketSphinx (the extra `align`), whose
package brings a model of American English. Run again after an interruption, or for a longer
manifest, it aligns only what is missing.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from data_pipelines.manifests import AUDIO_SUFFIXES, Entry, read_manifest
from quark_jax.commands import guarded
from quark_jax.errors import MissingPackage, UserError, optional_import

_RATE = 16_000  # of the model in PocketSphinx's package
_FRAMES = 100  # a second
# A frame is the 25.6 ms from frame / _FRAMES on; it speaks for the 10 ms in the middle of them.
_FRAME_SHIFT = 0.0078
_SILENCES = frozenset(("", "<eps>", "<s>", "</s>", "<sil>", "sil", "sp", "SIL"))
_DONE = ";; aligned "


@dataclass(frozen=True)
class Word:
    """A word of a recording: its text as written, and where it starts and ends, in seconds."""

    text: str
    start: float
    end: float


class AlignmentError(UserError):
    """A text that cannot be aligned to its recording; the message is the reason."""


def read_alignments(path: str | Path, entries: Sequence[Entry]) -> dict[str, list[Word]]:
    """The words of those of `entries` that `path` has, by `Entry.id`.

    Args:
        path: a CTM file, or a folder of TextGrids. These are matched to entries by name: the id of
            an entry, with or without the suffix of its audio file.
        entries: the recordings.

    Raises:
        UserError: if the file or folder cannot be read, or has none of the entries.
    """
    path = Path(path)
    found = read_textgrids(path) if path.is_dir() else read_ctm(path)
    named = {entry.id: found.get(entry.id) or found.get(_stem(entry.id)) for entry in entries}
    words = {name: value for name, value in named.items() if value}
    if not words:
        wanted = f", which has {entries[0].id!r}" if entries else ""
        raise UserError(f"{path}: aligns no recording of the manifest{wanted}; the ids must match")
    return words


def read_ctm(path: str | Path) -> dict[str, list[Word]]:
    """Reads a CTM file (NIST SCTK): `utterance channel start duration word [confidence]` a line.

    Comments (`;;`), empty lines and marks of silence are passed over, confidences too.

    Returns:
        The words of each utterance, in the order of their starts.

    Raises:
        UserError: if the file cannot be read; or naming file and line, for a malformed line or an
            utterance on two channels.
    """
    path = Path(path)
    words: dict[str, list[Word]] = {}
    channels: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, channel, word = _parse_ctm(line)
            if channels.setdefault(name, channel) != channel:
                raise ValueError(
                    f"{name!r} is on channels {channels[name]} and {channel}; give each channel "
                    "a recording and an id of its own"
                )
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if word.text not in _SILENCES:
            words.setdefault(name, []).append(word)
    return {name: sorted(said, key=lambda word: word.start) for name, said in words.items()}


def read_textgrids(folder: str | Path, *, tier: str = "words") -> dict[str, list[Word]]:
    """Reads all TextGrid files (Praat, Montreal Forced Aligner) below `folder`, through praatio.

    Args:
        folder: searched with all its subfolders.
        tier: the interval tier that holds the words, in upper or lower case; also taken where it
            ends the name (`SPEAKER - words`).

    Returns:
        The words of each file by its path below the folder, without `.TextGrid`.

    Raises:
        UserError: if there are no such files, or one cannot be read or has no such tier.
        MissingPackage: where praatio is not installed.
    """
    textgrid = _align_package("praatio.textgrid", "read TextGrids")
    errors = _align_package("praatio.utilities.errors", "read TextGrids")
    folder = Path(folder)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".textgrid")
    if not paths:
        raise UserError(f"{folder}: no TextGrid files; check the path")
    found = {}
    for path in paths:
        try:
            grid = textgrid.openTextgrid(str(path), False, reportingMode="silence")
        except (errors.PraatioException, OSError, ValueError, IndexError) as error:
            raise UserError(f"{path}: not a TextGrid ({error}); export it again") from error
        names = [name for name in grid.tierNames if name.lower().endswith(tier.lower())]
        if len(names) != 1 or not isinstance(grid.getTier(names[0]), textgrid.IntervalTier):
            raise UserError(
                f"{path}: needs one interval tier {tier!r}; has {', '.join(grid.tierNames)}"
            )
        entries = grid.getTier(names[0]).entries
        found[path.relative_to(folder).with_suffix("").as_posix()] = [
            Word(label, float(start), float(end))
            for start, end, label in entries
            if label not in _SILENCES
        ]
    return found


def write_ctm(alignments: Mapping[str, Sequence[Word]], path: str | Path) -> None:
    """Writes a CTM file, channel 1, to the millisecond; beside its place, then renamed.

    Raises:
        UserError: if an id or a word is empty or has a space in it, or the file cannot be written.
    """
    path = Path(path)
    lines = [line for name, words in alignments.items() for line in _ctm_lines(name, words)]
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check its folder"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


class ForcedAligner:
    """Aligns a text to its recording with PocketSphinx.

    Numbers in figures are spoken as inflect reads them; of words with hyphens that the dictionary
    lacks, it must have the parts. That a text is what is said is taken for granted: words that are
    not there are found somewhere all the same.

    Args:
        model: the folder of an acoustic model for 16 kHz; None for the American English one that
            comes with the package.
        dictionary: its pronouncing dictionary; goes with `model`.

    Raises:
        MissingPackage: where PocketSphinx is not installed.
    """

    def __init__(self, model: str | Path | None = None, dictionary: str | Path | None = None):
        if (model is None) != (dictionary is None):
            raise UserError("model and dictionary go together: give both, or neither")
        sphinx = _align_package("pocketsphinx", "align words")
        self._inflect = _align_package("inflect", "align words").engine()
        paths = {} if model is None else {"hmm": str(model), "dict": str(dictionary)}
        try:
            # cmn: normalised by each recording alone; the default goes by those before it as well.
            self._decoder = sphinx.Decoder(lm=None, cmn="batch", loglevel="FATAL", **paths)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{model}, {dictionary}: PocketSphinx cannot load them") from error

    def __call__(self, wave: np.ndarray, text: str) -> list[Word]:
        """The words of `text` in `wave` float32 [samples at 16 kHz], in order; each as written, in
        lower case and without the punctuation round it.

        Raises:
            AlignmentError: if a word is not in the dictionary, or the text does not fit the wave.
        """
        words = spoken_words(text)
        if not words:
            raise AlignmentError("its text has no words")
        for word in words:
            self._pronounce(word)
        pcm = np.round(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.set_align_text(" ".join(words))
        self._decoder.reinit_feat()  # forgets the noise of the recording before
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        parts = self._decoder.seg() if self._decoder.hyp() is not None else ()
        said = [part for part in parts if part.word[0] not in "<[+"]
        if [re.sub(r"\(\d+\)$", "", part.word) for part in said] != words:
            raise AlignmentError("its text does not fit what is heard")
        longest = len(wave) / _RATE
        edges = [
            (part.start_frame / _FRAMES + _FRAME_SHIFT, (part.end_frame + 1) / _FRAMES)
            for part in said
        ]
        return [
            Word(word, min(start, longest), min(end + _FRAME_SHIFT, longest))
            for word, (start, end) in zip(words, edges, strict=True)
        ]

    def _pronounce(self, word: str) -> None:
        """Adds a word to the dictionary that it has only in parts."""
        if self._decoder.lookup_word(word) is not None:
            return
        if any(letter.isdigit() for letter in word):
            words = spoken_words(self._inflect.number_to_words(word, andword=""))
            parts = [part for spoken in words for part in spoken.split("-")]
        else:
            parts = word.split("-")
        phones = [self._decoder.lookup_word(part) if part else "" for part in parts]
        if None in phones or parts == [word]:
            lacking = parts[phones.index(None)] if None in phones else word
            raise AlignmentError(f"{lacking!r} is not in the pronouncing dictionary")
        self._decoder.add_word(word, " ".join(filter(None, phones)), False)


def spoken_words(text: str) -> list[str]:
    """The words of a text, in lower case and without the punctuation round them."""
    words = (re.sub(r"^[^\w]+|[^\w]+$", "", word) for word in text.lower().split())
    return [word.replace("’", "'") for word in words if word]


def align(
    entries: Sequence[Entry],
    path: str | Path,
    *,
    language: str = "en",
    model: str | Path | None = None,
    dictionary: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[tuple[Entry, str]]:
    """Aligns the texts of `entries` to their recordings and writes `path`, a CTM file.

    Words of earlier runs are kept, in `path` or, of one that was interrupted, beside it.

    Args:
        language: entries of other languages are left out; those that say none are not.
        model, dictionary: as of `ForcedAligner`.
        workers: processes; None for one a core.
        progress: show a progress bar.

    Returns:
        The entries that are left out, and the reason of each.

    Raises:
        UserError: if the file cannot be written, or a file of that name is no CTM.
        MissingPackage: where PocketSphinx is not installed.
    """
    path = Path(path)
    done = read_ctm(path) if path.exists() else {}
    partial = path.with_name(f"{path.name}.partial")
    done |= _read_partial(partial)
    left_out, work = [], []
    for entry in entries:
        if entry.id in done:
            continue
        if reason := _unsuited(entry, language):
            left_out.append((entry, reason))
        else:
            work.append(entry)
    ForcedAligner(model, dictionary)  # for its errors, before any process is started
    try:
        file = partial.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check its folder"
        ) from error
    with file, _pool(workers, model, dictionary) as pool:
        found = pool.imap(_align_entry, work, chunksize=4)
        bar = tqdm(found, total=len(work), desc="Aligning", unit=" files", disable=not progress)
        for entry, words in zip(work, bar, strict=True):
            if isinstance(words, str):
                left_out.append((entry, words))
                continue
            done[entry.id] = words
            file.write("".join(_ctm_lines(entry.id, words)) + f"{_DONE}{entry.id}\n")
            file.flush()
    write_ctm(done, path)
    partial.unlink()
    return left_out


def _parse_ctm(line: str) -> tuple[str, str, Word]:
    """Utterance, channel and word of a line."""
    fields = line.split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"{len(fields)} fields; a CTM line is 'utterance channel start duration word "
            "[confidence]'"
        )
    name, channel, start, duration, text = fields[:5]
    try:
        times = float(start), float(duration)
    except ValueError as error:
        raise ValueError(f"start and duration are {start}, {duration}; give seconds") from error
    if not all(0 <= value < math.inf for value in times):
        raise ValueError(f"start and duration are {start}, {duration}; both have to be 0 or more")
    return name, channel, Word(text, times[0], times[0] + times[1])


def _ctm_lines(name: str, words: Iterable[Word]) -> Iterator[str]:
    for word in words:
        for field in (name, word.text):
            if len(field.split()) != 1:
                raise UserError(f"{field!r} is empty or has a space in it; CTM cannot hold it")
        yield f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text}\n"


def _read_partial(path: Path) -> dict[str, list[Word]]:
    """What an interrupted run aligned completely; the file is cut behind it."""
    if not path.exists():
        return {}
    whole = []
    begun = []
    for line in _read_text(path).splitlines(keepends=True):
        begun.append(line)
        if line.startswith(_DONE) and line.endswith("\n"):
            whole, begun = whole + begun, []
    path.write_text("".join(whole), encoding="utf-8")
    return read_ctm(path)


def _unsuited(entry: Entry, language: str) -> str:
    """Why an entry is not aligned; empty if it is."""
    if not entry.text.strip():
        return "has no text"
    if entry.language and entry.language.split("-")[0].lower() != language:
        return f"its language is {entry.language}"
    if len(entry.id.split()) != 1:
        return "its id has a space in it, which CTM cannot hold"
    return ""


def _pool(workers: int | None, model: str | Path | None, dictionary: str | Path | None):
    # spawn: JAX, which other parts of the package load, has threads that do not outlive a fork.
    return get_context("spawn").Pool(workers, _start_worker, (model, dictionary))


_aligner: ForcedAligner | None = None  # of a worker process


def _start_worker(model: str | Path | None, dictionary: str | Path | None) -> None:
    global _aligner
    _aligner = ForcedAligner(model, dictionary)


def _align_entry(entry: Entry) -> list[Word] | str:
    """The words of an entry, or why it has none."""
    assert _aligner is not None
    try:
        return _aligner(entry.read(_RATE), entry.text)
    except MissingPackage:
        raise
    except UserError as error:
        return str(error).removeprefix(f"{entry.path}: ")


def _stem(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else name


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read the alignments ({reason}); check the path") from error


def _align_package(module: str, use: str) -> ModuleType:
    return optional_import(module, use=use, install="pip install 'quark-jax[align]'")


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.alignments",
        description="Find where each word of a manifest's texts is said; write a CTM file.",
    )
    parser.add_argument("manifest", type=Path, help="recordings with texts")
    parser.add_argument("out", type=Path, help="the file to write, as .ctm")
    parser.add_argument("--language", default="en", help="others are left out (default: en)")
    parser.add_argument("--model", type=Path, help="folder of an acoustic model of PocketSphinx")
    parser.add_argument("--dictionary", type=Path, help="pronouncing dictionary of that model")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    given = parser.parse_args()
    return guarded(lambda: _align_and_tell(given))


def _align_and_tell(given: argparse.Namespace) -> None:
    entries = read_manifest(given.manifest)
    left_out = align(
        entries,
        given.out,
        language=given.language,
        model=given.model,
        dictionary=given.dictionary,
        workers=given.workers,
    )
    for entry, reason in left_out:
        print(f"left out {entry.id}: {reason}", file=sys.stderr)
    print(
        f"{given.out}: {len(entries) - len(left_out)} recordings aligned; {len(left_out)} left out"
    )


if __name__ == "__main__":
    sys.exit(_main())

"""Word alignments: which word is said when. Read from CTM and TextGrid files, or computed.

    python -m data_pipelines.alignments MANIFEST OUT.ctm

aligns the texts of a manifest to its recordings with PocketSphinx (the extra `align`), whose
package brings a model of American English. Run again after an interruption, or for a longer
manifest, it aligns only what is missing.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.alignment_files import (
    Word,
    align_package,
    ctm_lines,
    iterate_ctm,
    read_alignments,
    read_ctm,
    read_lines,
    read_textgrids,
    write_ctm,
)
from data_pipelines.corpora.workers import workers as worker_pool
from data_pipelines.manifests import Entry, read_manifest
from quark_jax.commands import guarded
from quark_jax.errors import MissingPackage, UserError
from quark_jax.files import replacing

__all__ = [
    "AlignmentError",
    "ForcedAligner",
    "Word",
    "align",
    "read_alignments",
    "read_ctm",
    "read_textgrids",
    "spoken_words",
    "write_ctm",
]

_RATE = 16_000  # of the model in PocketSphinx's package
_FRAMES = 100  # a second
# A frame is the 25.6 ms from frame / _FRAMES on; it speaks for the 10 ms in the middle of them.
_FRAME_SHIFT = 0.0078
_DONE = ";; aligned "


class AlignmentError(UserError):
    """A text that cannot be aligned to its recording; the message is the reason."""


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
        sphinx = align_package("pocketsphinx", "align words")
        self._inflect = align_package("inflect", "align words").engine()
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

    Words of earlier runs are kept, in `path` or, of one that was interrupted, beside it. In memory
    are the names of the recordings, not their words.

    Args:
        language: entries of other languages are left out; those that say none are not.
        model, dictionary: as of `ForcedAligner`.
        workers: processes; 1 aligns in this one, None takes one a core.
        progress: show a progress bar.

    Returns:
        The entries that are left out, and the reason of each.

    Raises:
        UserError: if the file cannot be written, a file of that name is no CTM, or a worker dies.
        MissingPackage: where PocketSphinx is not installed.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.partial")
    kept = {name for name, _ in iterate_ctm(path)} if path.exists() else set()
    done = kept | _finished(beside)
    left_out, work = [], []
    for entry in entries:
        if entry.id in done:
            continue
        if reason := _unsuited(entry, language):
            left_out.append((entry, reason))
        else:
            work.append((entry, entry))
    _aligner(model, dictionary)  # for its errors, before any process is started
    try:
        file = beside.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); check its folder"
        ) from error
    align_one = partial(_align_entry, model=model, dictionary=dictionary)
    with file, worker_pool(workers) as in_order:
        found = in_order(align_one, iter(work))
        bar = tqdm(found, total=len(work), desc="Aligning", unit=" files", disable=not progress)
        for entry, words in bar:
            if isinstance(words, str):
                left_out.append((entry, words))
                continue
            file.write("".join(ctm_lines(entry.id, words)) + f"{_DONE}{entry.id}\n")
            file.flush()
    _append(beside, path, kept)
    beside.unlink()
    return left_out


def _finished(path: Path) -> set[str]:
    """The recordings that an interrupted run aligned completely; the file is cut behind them."""
    names: set[str] = set()
    if not path.exists():
        return names
    whole = size = 0
    for line in read_lines(path):
        size += len(line.encode())
        if line.startswith(_DONE) and line.endswith("\n"):
            names.add(line.removeprefix(_DONE).rstrip("\n"))
            whole = size
    os.truncate(path, whole)
    return names


def _append(beside: Path, path: Path, kept: set[str]) -> None:
    """Takes the words of `beside` into `path`, but for the recordings `kept`, which it has."""
    with replacing(path) as longer, longer.open("w", encoding="utf-8") as file:
        for line in read_lines(path) if path.exists() else ():
            file.write(line if line.endswith("\n") else f"{line}\n")
        for line in read_lines(beside):
            if not line.startswith(_DONE) and line.split()[0] not in kept:
                file.write(line)


def _unsuited(entry: Entry, language: str) -> str:
    """Why an entry is not aligned; empty if it is."""
    if not entry.text.strip():
        return "has no text"
    if entry.language and entry.language.split("-")[0].lower() != language:
        return f"its language is {entry.language}"
    if len(entry.id.split()) != 1:
        return "its id has a space in it, which CTM cannot hold"
    return ""


@cache
def _aligner(model: str | Path | None, dictionary: str | Path | None) -> ForcedAligner:
    return ForcedAligner(model, dictionary)


def _align_entry(
    entry: Entry, *, model: str | Path | None, dictionary: str | Path | None
) -> list[Word] | str:
    """The words of an entry, or why it has none."""
    try:
        return _aligner(model, dictionary)(entry.read(_RATE), entry.text)
    except MissingPackage:
        raise
    except UserError as error:
        return str(error).removeprefix(f"{entry.path}: ")


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

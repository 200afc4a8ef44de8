"""Word alignments: which word is said when. Read from CTM and TextGrid files, or computed.

    python -m data_pipelines.alignments MANIFEST OUT.ctm

aligns the texts of a manifest to its recordings with PocketSphinx (the extra `align`), whose
package brings a model of American English. Run again after an interruption, or for a longer
manifest, it aligns only what is missing.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.alignment_files import (
    Word,
    align_package,
    ctm_lines,
    read_alignments,
    read_ctm,
    read_text,
    read_textgrids,
    write_ctm,
)
from data_pipelines.manifests import Entry, read_manifest
from quark_jax.commands import guarded
from quark_jax.errors import MissingPackage, UserError

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
            file.write("".join(ctm_lines(entry.id, words)) + f"{_DONE}{entry.id}\n")
            file.flush()
    write_ctm(done, path)
    partial.unlink()
    return left_out


def _read_partial(path: Path) -> dict[str, list[Word]]:
    """What an interrupted run aligned completely; the file is cut behind it."""
    if not path.exists():
        return {}
    whole, begun = "", ""
    for line in read_text(path).splitlines(keepends=True):
        begun += line
        if line.startswith(_DONE) and line.endswith("\n"):
            whole, begun = whole + begun, ""
    os.truncate(path, len(whole.encode()))
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
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

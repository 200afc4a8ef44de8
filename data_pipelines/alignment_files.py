"""Files of word alignments: CTM, read and written, and TextGrid, read."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from etils import epath

from data_pipelines.manifests import AUDIO_SUFFIXES, Entry
from quark_jax.errors import UserError, optional_import
from quark_jax.files import replacing

_SILENCES = frozenset(("", "<eps>", "<s>", "</s>", "<sil>", "sil", "sp", "SIL"))


@dataclass(frozen=True)
class Word:
    """A word of a recording: its text as written, and where it starts and ends, in seconds."""

    text: str
    start: float
    end: float


def read_alignments(path: str | Path, entries: Sequence[Entry]) -> dict[str, list[Word]]:
    """The words of those of `entries` that `path` has, by `Entry.id`.

    Args:
        path: a CTM file, or a folder of TextGrids. These are matched to entries by name: the id of
            an entry, with or without the suffix of its audio file.
        entries: the recordings.

    Raises:
        UserError: if the file or folder cannot be read, or has none of the entries.
    """
    path = epath.Path(path)
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
    words: dict[str, list[Word]] = {}
    for name, word in iterate_ctm(path):
        if word.text not in _SILENCES:
            words.setdefault(name, []).append(word)
    return {name: sorted(said, key=lambda word: word.start) for name, said in words.items()}


def iterate_ctm(path: str | Path) -> Iterator[tuple[str, Word]]:
    """The lines of a CTM file: utterance and word, marks of silence among them; without holding the
    file in memory. Raises as `read_ctm`."""
    path = epath.Path(path)
    channels: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
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
        yield name, word


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
    textgrid = align_package("praatio.textgrid", "read TextGrids")
    errors = align_package("praatio.utilities.errors", "read TextGrids")
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
    lines = [line for name, words in alignments.items() for line in ctm_lines(name, words)]
    with replacing(path) as beside:
        beside.write_text("".join(lines), encoding="utf-8")


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


def ctm_lines(name: str, words: Iterable[Word]) -> Iterator[str]:
    """The lines of one utterance, each with its line break. Raises UserError where CTM cannot hold
    its name or a word."""
    for word in words:
        for field in (name, word.text):
            if len(field.split()) != 1:
                raise UserError(f"{field!r} is empty or has a space in it; CTM cannot hold it")
        yield f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text}\n"


def _stem(name: str) -> str:
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else name


def read_lines(path: epath.Path) -> Iterator[str]:
    """The lines of a file of alignments as they are. Raises UserError if it cannot be read."""
    try:
        with path.open("rb") as file:  # lines end in \n alone
            yield from (line.decode("utf-8") for line in file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read the alignments ({reason}); check the path") from error


def align_package(module: str, use: str) -> ModuleType:
    """`module` of a package in the extra `align`. Raises `MissingPackage` where it is missing."""
    return optional_import(module, use=use, extra="align")

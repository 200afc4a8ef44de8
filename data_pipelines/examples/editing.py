"""Edits of speech, by instructions: words are inserted, deleted and substituted."""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipelines.alignments import Word
from data_pipelines.cuts import Cutter
from data_pipelines.examples.base import (
    INPUT_RATE,
    Example,
    RecordedSource,
    as_json,
    at_input_rate,
    checked,
    generator,
)
from data_pipelines.examples.clips import fade_edges
from data_pipelines.examples.instructions import instruction, spoken
from data_pipelines.examples.splicing import Joints, Passage, Piece, find_joints, join
from data_pipelines.manifests import Entry
from data_pipelines.simulation import active_power, limit_peak
from quark_jax.errors import UserError

_log = logging.getLogger(__name__)
OPERATIONS = ("insert", "delete", "substitute")
_NOT_WORDS = frozenset(("spn", "unk"))
_DRAWS = 16
_TRIES = 128  # recordings that are decoded for one example, at most
_ROOM = 0.25  # share of the length that is kept for a word from elsewhere


@dataclass(frozen=True)
class SpeechEdits:
    """What is edited, and how.

    Attributes:
        operations: of `OPERATIONS`, each as often; those that no recording is fit for are left
            out.
        words: how many neighbouring words are cut out, both ends included.
        delete_from_original: share of deletions whose input, and not the target, is the recording.
        quiet_db: how far the 10 ms round a splice lie below the speech, at least.
        fade_seconds: of the cross-fades.
        peak: of the louder of input and target.
    """

    operations: tuple[str, ...] = OPERATIONS
    words: tuple[int, int] = (1, 2)
    delete_from_original: float = 0.5
    quiet_db: float = 20.0
    fade_seconds: float = 0.01
    peak: tuple[float, float] = (0.1, 0.99)


@dataclass(frozen=True)
class Edit:
    """An edit before its words: waves of one scale, the slots of its instruction, what is said in
    input and target, and which of the two is the recording."""

    input: np.ndarray
    target: np.ndarray
    slots: dict[str, str]
    said: tuple[list[str], list[str]]
    original: str
    donor: Entry | None = None


class SpeechEditing(RecordedSource):
    """Examples of task edit: speech with words inserted, deleted or substituted.

    One of input and target is always a recording as it was spoken (or some neighbouring words of
    it, where all of it is too long). It is the target where it can be, for what a model learns to
    say is then natural speech and not splices:

    - insert: words are cut out of the recording to make the input;
    - substitute: words of the recording give way to another of the same speaker in the input;
    - delete: one half has a word of the same speaker put into the input; of the other half the
      input is the recording, as in use, and a model cannot go by the sound of the splices alone.

    Words are cut and joined where it is quiet, and only there. Where an instruction names a word
    to find, there is only one such. Without a second word of any speaker, as where none is named
    and recordings are short, there is no substitution, and deletions are all of the second kind.

    Args:
        entries: recordings; those without alignments are not used. Words are exchanged between
            those of one speaker; entries that name none share with nobody.
        alignments: the words of each recording by `Entry.id`.
        rate: rate of the targets in Hz.
        seconds: the longest input or target.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording of two words or more.
        config: what is edited, and how.

    Attributes:
        operations: those of the config that some recording is fit for.

    Raises:
        UserError: if no recording has two aligned words or is fit for one of the operations, or
            an operation is unknown.
    """

    task = "edit"

    def __init__(
        self,
        entries: Sequence[Entry],
        alignments: Mapping[str, Sequence[Word]],
        *,
        rate: int = INPUT_RATE,
        seconds: float = 5.0,
        seed: int = 0,
        length: int | None = None,
        config: SpeechEdits = SpeechEdits(),
    ):
        if unknown := set(config.operations) - set(OPERATIONS):
            raise UserError(
                f"operations: {min(unknown)!r} is unknown; choose from {', '.join(OPERATIONS)}"
            )
        aligned = [entry for entry in entries if alignments.get(entry.id)]
        self._words = {entry: tuple(alignments[entry.id]) for entry in aligned}
        usable = [entry for entry in aligned if len(self._words[entry]) > 1]
        if not usable:
            raise UserError("no recordings with two or more aligned words; check the alignments")
        self.config = config
        self._samples = round(seconds * rate)
        self._cutter = Cutter(aligned, rate=rate, samples=self._samples)
        super().__init__(
            aligned,
            (self._cutter,),
            rate=rate,
            seconds=seconds,
            seed=seed,
            length=len(usable) if length is None else length,
        )
        self._lexicon: dict[str, list[tuple[Entry, int]]] = defaultdict(list)
        for entry in aligned:
            for number, word in enumerate(self._words[entry]):
                if _is_word(word.text):
                    self._lexicon[_voice(entry)].append((entry, number))
        self._fit = self._sort_by_way(usable)
        self.operations = [name for name in config.operations if self._ways(name)]
        if left_out := [name for name in config.operations if name not in self.operations]:
            message = (
                f"no recording is fit for {', '.join(left_out)}: it takes words to cut out, for "
                "substitute also another word of the speaker; name the speakers in the manifest"
            )
            if not self.operations:
                raise UserError(message)
            _log.warning("%s", message)

    def __getitem__(self, index: int) -> Example:
        rng = generator(self.seed, checked(index, self._length))
        operation = self.operations[int(rng.integers(len(self.operations)))]
        ways = self._ways(operation)
        one = len(ways) == 1 or rng.random() < self.config.delete_from_original
        way = ways[0 if one else 1]
        entries = self._fit[way]
        tries = min(len(entries), _TRIES)
        for step in range(tries):
            passage = self._passage(entries[(index + step) % len(entries)], rng)
            if passage and (edit := getattr(self, f"_{way}")(passage, rng)):
                return self._example(index, operation, passage, edit, rng)
        raise UserError(
            f"none of {tries} recordings can be edited ({operation}): their words are "
            f"not {self.config.quiet_db:g} dB apart, or do not fit in {self.seconds:g} s"
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "kind": "speech",
            "alignments": _fingerprint_words(self._words),
            "edits": as_json(self.config),
        }

    def _ways(self, operation: str) -> list[str]:
        """The ways to do an operation that there are recordings for."""
        ways = ("delete", "delete_other") if operation == "delete" else (operation,)
        return [way for way in ways if self._fit[way]]

    def _sort_by_way(self, usable: Sequence[Entry]) -> dict[str, list[Entry]]:
        """The recordings that are fit for each way to edit, by their words alone."""
        said = {voice: {self._text(*word) for word in all} for voice, all in self._lexicon.items()}
        whole = self.seconds * (1 - _ROOM)
        cut, paired = [], []
        for entry in usable:
            words = [word.text.lower() for word in self._words[entry]]
            if any(True for _ in self._runs(words)):
                cut.append(entry)
            # Of a long recording only a part is taken: its other words are there as well.
            others = said.get(_voice(entry), set())
            if any(word not in words for word in others) or (
                len(others) > 1 and self._words[entry][-1].end > whole
            ):
                paired.append(entry)
        donated = set(paired)
        substitute = [entry for entry in cut if entry in donated]
        return {"insert": cut, "delete": cut, "delete_other": paired, "substitute": substitute}

    def _text(self, entry: Entry, number: int) -> str:
        return self._words[entry][number].text.lower()

    def _example(
        self, index: int, operation: str, passage: Passage, edit: Edit, rng: np.random.Generator
    ) -> Example:
        loudest = max(np.max(np.abs(edit.input)), np.max(np.abs(edit.target)))
        scale = np.float32(rng.uniform(*self.config.peak) / loudest)
        given, target = limit_peak((edit.input * scale, edit.target * scale), self.config.peak[1])
        return Example(
            task=self.task,
            target=target,
            rate=self.rate,
            input=at_input_rate(given, self.rate),
            caption=instruction(operation, rng, **edit.slots),
            provenance={
                "operation": operation,
                "file": passage.entry.id,
                "start": passage.start,
                "original": edit.original,
                "other": edit.donor.id if edit.donor else None,
                "input_words": " ".join(edit.said[0]),
                "target_words": " ".join(edit.said[1]),
                "seed": self.seed,
                "index": index,
            },
        )

    def _insert(self, passage: Passage, rng: np.random.Generator) -> Edit | None:
        for first, stop in self._spans(passage, rng):
            left = passage.without(first, stop)
            write = spoken(rng)
            if where := _where(left, first, write, rng):
                slots = {"new": write(passage.words[first:stop]), "where": where}
                shorter = self._without(passage, first, stop)
                return Edit(shorter, passage.wave, slots, (left, list(passage.words)), "target")
        return None

    def _delete(self, passage: Passage, rng: np.random.Generator) -> Edit | None:
        for first, stop in self._spans(passage, rng):
            if _count(passage.words, passage.words[first:stop]) == 1:
                slots = {"old": spoken(rng)(passage.words[first:stop])}
                shorter = self._without(passage, first, stop)
                said = (list(passage.words), passage.without(first, stop))
                return Edit(passage.wave, shorter, slots, said, "input")
        return None

    def _delete_other(self, passage: Passage, rng: np.random.Generator) -> Edit | None:
        """A word of another recording is put in; deleting it gives the passage."""
        found = self._donor(passage, rng)
        quiet = np.flatnonzero(passage.quiet)
        if found is None or not len(quiet):
            return None
        text, donor, entry = found
        number = int(quiet[rng.integers(len(quiet))])
        place = int(passage.joints.places[number])
        longer = self._spliced(passage, place, place, [donor])
        said = [*passage.words[:number], text, *passage.words[number:]]
        slots = {"old": spoken(rng)([text])}
        return Edit(longer, passage.wave, slots, (said, list(passage.words)), "target", entry)

    def _substitute(self, passage: Passage, rng: np.random.Generator) -> Edit | None:
        found = self._donor(passage, rng)
        spans = self._spans(passage, rng)
        if found is None or not spans:
            return None
        text, donor, entry = found
        first, stop = spans[0]
        places = passage.joints.places
        changed = self._spliced(passage, int(places[first]), int(places[stop]), [donor])
        said = [*passage.words[:first], text, *passage.words[stop:]]
        write = spoken(rng)
        slots = {"old": write([text]), "new": write(passage.words[first:stop])}
        return Edit(changed, passage.wave, slots, (said, list(passage.words)), "target", entry)

    def _passage(self, entry: Entry, rng: np.random.Generator) -> Passage | None:
        """All of a recording, or as many words as fit from a random one on. None where it cannot
        be used."""
        place = rng.random()
        wave = self._cutter.read(entry)
        if wave is None:
            return None
        words = self._words[entry]
        joints = find_joints(wave, words, self.rate)
        quiet = joints.depth_db >= self.config.quiet_db
        texts = tuple(word.text.lower() for word in words)
        room = round(self._samples * (1 - _ROOM))
        if len(wave) <= room:
            return Passage(wave, texts, joints, quiet, entry, 0)
        edges = np.flatnonzero(quiet)
        runs = []
        for first in edges:
            fits = edges[
                (edges > first + 1) & (joints.places[edges] - joints.places[first] <= room)
            ]
            if len(fits):
                runs.append((int(first), int(fits[-1])))
        if not runs:
            return None
        first, stop = runs[int(place * len(runs))]
        start, end = joints.places[[first, stop]]
        part = slice(first, stop + 1)
        inner = Joints(joints.places[part] - start, joints.depth_db[part])
        cut = fade_edges(wave[start:end], self.rate)
        return Passage(cut, texts[first:stop], inner, quiet[part], entry, int(start))

    def _spans(self, passage: Passage, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Words (first, stop) that can be cut out and leave others, in random order."""
        quiet = passage.quiet
        spans = [span for span in self._runs(passage.words) if quiet[list(span)].all()]
        return [spans[number] for number in rng.permutation(len(spans))]

    def _runs(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Words (first, stop) that leave others, as many as are cut out at once."""
        low, high = self.config.words
        for first in range(len(words)):
            for stop in range(first + low, min(first + high, len(words)) + 1):
                if stop - first < len(words) and all(map(_is_word, words[first:stop])):
                    yield first, stop

    def _donor(self, passage: Passage, rng: np.random.Generator) -> tuple[str, Piece, Entry] | None:
        """A word of the same speaker that the passage does not have: its text, its piece, as loud
        as the passage, and its recording."""
        lexicon = self._lexicon[_voice(passage.entry)]
        for number in rng.integers(len(lexicon), size=_DRAWS):
            entry, place = lexicon[number]
            text = self._text(entry, place)
            wave = None if text in passage.words else self._cutter.read(entry)
            if wave is None:
                continue
            joints = find_joints(wave, self._words[entry], self.rate)
            start, stop = (int(edge) for edge in joints.places[place : place + 2])
            quiet = joints.depth_db[place : place + 2] >= self.config.quiet_db
            if quiet.all() and 0 < stop - start <= self._samples - len(passage.wave):
                gain = np.sqrt(
                    active_power(passage.wave, self.rate) / active_power(wave, self.rate)
                )
                return text, Piece(wave, start, stop, float(gain)), entry
        return None

    def _without(self, passage: Passage, first: int, stop: int) -> np.ndarray:
        places = passage.joints.places
        return self._spliced(passage, int(places[first]), int(places[stop]), [])

    def _spliced(
        self, passage: Passage, start: int, stop: int, pieces: Sequence[Piece]
    ) -> np.ndarray:
        """The passage with `pieces` in place of its samples from `start` to `stop`."""
        before = Piece(passage.wave, 0, start)
        after = Piece(passage.wave, stop, len(passage.wave))
        return join([before, *pieces, after], self.rate, fade_seconds=self.config.fade_seconds)


def _is_word(text: str) -> bool:
    return text not in _NOT_WORDS and re.fullmatch(r"\w(.*\w)?", text) is not None


def _voice(entry: Entry) -> str:
    """Entries of one voice share this: the speaker, or where it is unknown the recording."""
    return f"speaker {entry.speaker}" if entry.speaker else f"recording {entry.id}"


def _count(words: Sequence[str], run: Sequence[str]) -> int:
    """How often `run` occurs in `words`."""
    size = len(run)
    return sum(tuple(words[n : n + size]) == tuple(run) for n in range(len(words) - size + 1))


def _where(
    words: Sequence[str],
    place: int,
    write: Callable[[Sequence[str]], str],
    rng: np.random.Generator,
) -> str:
    """In words, the place in `words` before number `place`; empty if they do not tell it."""
    choices = []
    if place == 0:
        choices.append("at the beginning")
    elif _is_word(words[place - 1]) and _count(words, words[place - 1 : place]) == 1:
        choices.append(f"after {write(words[place - 1 : place])}")
    if place == len(words):
        choices.append("at the end")
    elif _is_word(words[place]) and _count(words, words[place : place + 1]) == 1:
        choices.append(f"before {write(words[place : place + 1])}")
    return choices[int(rng.integers(len(choices)))] if choices else ""


def _fingerprint_words(words: Mapping[Entry, Sequence[Word]]) -> str:
    """A hash of what is said when."""
    digest = hashlib.sha256()
    for entry, said in words.items():
        digest.update(json.dumps([entry.id, *(asdict(word) for word in said)]).encode())
    return digest.hexdigest()[:16]

"""Who speaks in which recording: other speakers, and enrolments of the same one."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_pipelines.cuts import Cutter, why_unusable
from data_pipelines.manifests import Entry, Unreachable, local_copy
from data_pipelines.simulation import fit, is_silent
from quark_jax import audio
from quark_jax.errors import UserError

_DRAWS = 4


class Speakers:
    """Draws from the recordings of `speech` by speaker.

    A recording whose entry names no speaker may be by anyone: it is nobody else's interferer, and
    an enrolment for it can only come from itself.

    Args:
        speech: cuts of all recordings.
        samples: length of an enrolment, at the rate of `speech`.

    Attributes:
        count: number of named speakers.
        skipped: recordings that examples are not made of, and why: those without an enrolment, and
            the corrupt and silent ones that were met as enrolments.
    """

    def __init__(self, speech: Cutter, samples: int):
        self._speech = speech
        same = samples == speech.samples
        self._enrolments = (
            speech if same else Cutter(speech.entries, rate=speech.rate, samples=samples)
        )
        self._left_out: dict[Entry, str] = {}
        self._number = {entry: number for number, entry in enumerate(speech.entries)}
        self._of: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(speech.entries):
            if entry.speaker:
                self._of[entry.speaker].append(number)
        self._names = list(self._of)
        self._place = {name: place for place, name in enumerate(self._names)}
        self.count = len(self._names)

    @property
    def skipped(self) -> dict[Entry, str]:
        return self._left_out | self._enrolments.skipped

    def enrollable(self, *, named: bool) -> list[int]:
        """The numbers of the recordings that an enrolment can be found for; the others are
        `skipped`, as are those of no speaker where it has to be `named`.

        A recording that is the only one of its speaker has to hold a cut and two enrolments, so
        that there is always room for one beside the cut.

        Raises:
            UserError: if there is none.
        """
        usable = []
        for number, entry in enumerate(self._speech.entries):
            if len(self._of.get(entry.speaker, ())) > 1:
                usable.append(number)
            elif named and not entry.speaker:
                self._left_out[entry] = "no speaker is named: anyone may be the same one"
            elif reason := self._too_short(entry):
                self._left_out[entry] = reason
            else:
                usable.append(number)
        if not usable:
            entry, reason = next(iter(self._left_out.items()))
            raise UserError(
                f"no recording has an enrolment; {entry.path}: {reason}; add recordings of the "
                "same speakers, or name them in the manifest"
            )
        return usable

    def enrolled(
        self, usable: Sequence[int], index: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Entry, int, np.ndarray, Entry]:
        """A cut of recording `index` of `usable`, or of the first one after it that has both a cut
        and an enrolment.

        Returns:
            As `Cutter.random`; and the enrolment with its entry, of another recording of the
            speaker, or where there is none, of the same one beside the cut.

        Raises:
            UserError: if no recording has both.
        """
        for step in range(len(usable)):
            cut, entry, start = self._speech.random(index + step, rng, among=usable)
            try:
                return cut, entry, start, *self._enrolment(entry, start, rng)
            except Unreachable:
                raise
            except UserError as error:
                self._left_out[entry] = f"no enrolment ({error})"
        raise UserError(
            f"none of {len(usable)} recordings has an enrolment; {entry.path}: "
            f"{self._left_out[entry]}"
        )

    def other(self, speaker: str, rng: np.random.Generator) -> tuple[np.ndarray, Entry, int]:
        """A cut of another speaker than `speaker`, which must be named; all of them as often.

        Returns:
            As `Cutter.random`.

        Raises:
            UserError: if no recording of another speaker can be used.
        """
        first, rest = self._place[speaker], self.count - 1
        step = int(rng.integers(rest))
        place = rng.random()
        for turn in range(rest):
            mine = self._of[self._names[(first + 1 + (step + turn) % rest) % self.count]]
            try:
                return self._speech.random(int(place * len(mine)), rng, among=mine)
            except Unreachable:
                raise
            except UserError:
                if turn == rest - 1:
                    raise
        raise AssertionError("there is another speaker")

    def _too_short(self, entry: Entry) -> str:
        """Why no enrolment fits beside a cut; empty where one does."""
        least = (self._speech.samples + 2 * self._enrolments.samples) / self._speech.rate
        try:
            seconds = _seconds(entry)
        except UserError as error:
            return why_unusable(entry, error)
        whose = f"the only one of {entry.speaker}" if entry.speaker else "of no named speaker"
        return "" if seconds >= least else f"{whose}, and shorter than {least:g} s: no enrolment"

    def _enrolment(
        self, entry: Entry, start: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, Entry]:
        """Raises UserError if there is none."""
        mine = self._of.get(entry.speaker, ())
        others = [number for number in mine if number != self._number[entry]]
        if others:
            place = int(rng.integers(len(others)))
            cut, other, _ = self._enrolments.random(place, rng, among=others)
            return cut, other
        whole = self._enrolments.read(entry)
        if whole is None:
            raise UserError(f"{entry.path}: {self._enrolments.skipped[entry]}")
        return self._beside(whole, entry, start, rng), entry

    def _beside(
        self, whole: np.ndarray, entry: Entry, start: int, rng: np.random.Generator
    ) -> np.ndarray:
        """An audible cut of the longer part of `whole` before or after the cut at `start`."""
        before, after = whole[:start], whole[start + self._speech.samples :]
        part = max(before, after, key=len)
        samples = self._enrolments.samples
        if len(part) < samples or is_silent(part):
            raise UserError(f"{entry.path}: nothing is said for long enough beside the cut")
        for place in rng.random(_DRAWS):
            cut = part[int(place * (len(part) - samples + 1)) :][:samples]
            if not is_silent(cut):
                return cut
        loudest = int(np.argmax(np.abs(part))) - samples // 2
        return fit(part, samples, min(max(loudest, 0), len(part) - samples))


def _seconds(entry: Entry) -> float:
    """Duration of an entry, from the header of its file where the manifest does not say it."""
    if entry.seconds is not None:
        return entry.seconds
    with local_copy(entry.path) as path:
        header = audio.info(path)
    frames = header.samples - entry.start if entry.frames is None else entry.frames
    return frames / header.rate

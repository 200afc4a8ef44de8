"""What surrounds speech: noise, and rooms. From recordings where there are any, else made."""

from collections.abc import Sequence

import numpy as np

from data_pipelines import simulation
from data_pipelines.cuts import Cutter, why_unusable
from data_pipelines.examples.base import as_json, fingerprint
from data_pipelines.manifests import Entry, local_copy
from data_pipelines.simulation import Rooms
from quark_jax import audio
from quark_jax.errors import UserError

_COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
_BABBLE_VOICES = (3, 7)
_KEEP_BYTES = 1 << 27  # of room responses, the first ones are kept


class Noises:
    """Noise of the length of the cuts of `speech`: cut from `recordings` where there are any;
    otherwise white, pink or brown noise, mains hum, or babble of `speech`, each as often."""

    def __init__(self, recordings: Sequence[Entry], speech: Cutter):
        self._speech = speech
        self._recordings = (
            Cutter(recordings, rate=speech.rate, samples=speech.samples) if recordings else None
        )

    @property
    def skipped(self) -> dict[Entry, str]:
        """The corrupt and silent recordings met so far, and the reason of each."""
        return self._recordings.skipped if self._recordings else {}

    def describe(self) -> str | None:
        """The fingerprint of the recordings; None where noise is made."""
        return fingerprint(self._recordings.entries) if self._recordings else None

    def random(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Its kind, or the recording's id; and the noise float32 [samples]."""
        speech = self._speech
        if self._recordings:
            place = int(rng.integers(len(self._recordings)))
            cut, entry, _ = self._recordings.random(place, rng)
            return entry.id, cut
        kind = str(rng.choice((*_COLOURS, "hum", *(("babble",) if len(speech) > 1 else ()))))
        if kind == "hum":
            return kind, simulation.hum(speech.samples, speech.rate, rng)
        if kind == "babble":
            places = rng.integers(0, len(speech), rng.integers(*_BABBLE_VOICES))
            voices = [speech.random(int(place), rng)[0] for place in places]
            return kind, simulation.babble(voices, speech.rate)
        return kind, simulation.coloured_noise(speech.samples, _COLOURS[kind], rng)


class Responses:
    """Room responses at `rate` Hz, peak 1, from 1 ms before the direct path on: `rooms` are
    recordings, of which the first channel is read, or ranges to make rooms from."""

    def __init__(self, rooms: Sequence[Entry] | Rooms, rate: int):
        self._rooms = rooms
        self._rate = rate
        self.skipped: dict[Entry, str] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._room = _KEEP_BYTES
        if not isinstance(rooms, Rooms) and not rooms:
            raise UserError("no room responses; give recordings of some, or leave rooms out")

    def __getstate__(self) -> dict:
        """Without the responses: worker processes keep their own."""
        return self.__dict__ | {"_kept": {}, "_room": _KEEP_BYTES}

    def __len__(self) -> int:
        return self._rooms.count if isinstance(self._rooms, Rooms) else len(self._rooms)

    def describe(self) -> dict | str:
        """The ranges, or the fingerprint of the recordings."""
        made = isinstance(self._rooms, Rooms)
        return as_json(self._rooms) if made else fingerprint(self._rooms)

    def random(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Its name and a response float32 [samples], not to be written to.

        Raises:
            UserError: if no recording can be used.
        """
        first = int(rng.integers(len(self)))
        for step in range(len(self)):
            number = (first + step) % len(self)
            if (response := self.get(number)) is not None:
                made = isinstance(self._rooms, Rooms)
                return f"room {number}" if made else self._rooms[number].id, response
        entry = self._rooms[first]
        raise UserError(
            f"none of {len(self)} room responses can be used; {entry.path}: {self.skipped[entry]}"
        )

    def get(self, number: int) -> np.ndarray | None:
        """Response `number` of `len`, float32 [samples]; None if its recording cannot be used."""
        if number in self._kept:
            return self._kept[number]
        if isinstance(self._rooms, Rooms):
            room = simulation.draw_room(self._rooms, number)
            response = simulation.make_response(room, self._rate)
        elif (response := self._read(self._rooms[number])) is None:
            return None
        response = simulation.trim(response, self._rate)
        response.flags.writeable = False
        if response.nbytes <= self._room:
            self._room -= response.nbytes
            self._kept[number] = response
        return response

    def _read(self, entry: Entry) -> np.ndarray | None:
        """The first channel: the mean of several microphones would be a response of none."""
        if entry in self.skipped:
            return None
        try:
            with local_copy(entry.path) as path:
                wave, rate = audio.read(path, mono="first")
        except UserError as error:
            self.skipped[entry] = why_unusable(entry, error)
            return None
        stop = None if entry.frames is None else entry.start + entry.frames
        wave = wave[entry.start : stop]
        if not wave.any():
            self.skipped[entry] = "silent"
            return None
        return audio.resample(wave, rate, self._rate)

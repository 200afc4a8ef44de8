"""Reverberation: room responses, recorded or made, and what they do to speech.

Made rooms are shoeboxes by the image source method (Allen and Berkley, 1979), computed by
pyroomacoustics.
"""

from dataclasses import dataclass

import numpy as np
from scipy.signal import oaconvolve

from quark_jax.errors import UserError

SPEED_OF_SOUND = 343.0  # m/s
_DIRECT_ABOVE = 0.1
_LEAD_SECONDS = 1e-3
_OFF_CENTRE = 0.2  # m
_DIRECTIONS = 64


@dataclass(frozen=True)
class Rooms:
    """Shoebox rooms with one source and one microphone near the middle, drawn uniformly.

    The ranges follow WHAMR! (Maciejewski et al., 2020), its three classes of reverberation time
    joined.

    Attributes:
        count: number of different rooms; each is made when it is first needed.
        seed: room k is a function of (seed, k) alone.
        length, width, height: in metres.
        rt60: reverberation time in seconds.
        distance: from source to microphone along the floor, in metres.
        source_height, microphone_height: in metres.
    """

    count: int = 500
    seed: int = 0
    length: tuple[float, float] = (5.0, 10.0)
    width: tuple[float, float] = (5.0, 10.0)
    height: tuple[float, float] = (3.0, 4.0)
    rt60: tuple[float, float] = (0.1, 1.0)
    distance: tuple[float, float] = (0.66, 2.0)
    source_height: tuple[float, float] = (0.9, 1.8)
    microphone_height: tuple[float, float] = (0.9, 1.8)

    def __post_init__(self):
        reach = self.distance[1] + _OFF_CENTRE
        if min(self.length[0], self.width[0]) / 2 <= reach:
            raise UserError(
                f"rooms: a source {self.distance[1]} m away is outside the smallest room; "
                "lower distance, or raise length and width"
            )
        if max(self.source_height[1], self.microphone_height[1]) >= self.height[0]:
            raise UserError("rooms: a source or microphone is above the ceiling; lower its height")
        if self.rt60[0] <= 0 or self.count < 1:
            raise UserError("rooms: rt60 and count have to be positive")


@dataclass(frozen=True)
class Room:
    """One room: size and places of source and microphone [3] in metres, RT60 in seconds."""

    size: np.ndarray
    source: np.ndarray
    microphone: np.ndarray
    rt60: float


def draw_room(rooms: Rooms, number: int) -> Room:
    """Room `number` of `rooms`, from 0."""
    rng = np.random.default_rng((rooms.seed, number))
    size = np.array([rng.uniform(*r) for r in (rooms.length, rooms.width, rooms.height)])
    middle = size[:2] / 2 + rng.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2)
    angle = rng.uniform(0, 2 * np.pi)
    away = rng.uniform(*rooms.distance) * np.array((np.cos(angle), np.sin(angle)))
    return Room(
        size=size,
        source=np.append(middle + away, rng.uniform(*rooms.source_height)),
        microphone=np.append(middle, rng.uniform(*rooms.microphone_height)),
        rt60=float(rng.uniform(*rooms.rt60)),
    )


def absorption(size: np.ndarray, rt60: float) -> float:
    """The walls' absorption of energy (0..1) that gives a shoebox of `size` [3] (metres) the
    reverberation time `rt60` (seconds) by the image source method.

    A wave in direction u meets c sum |u_i| / size_i walls a second. The mean over all directions
    of the energy left is the decay of the image sources (Lehmann and Johansson, 2008); Sabine's
    and Eyring's formulas take the mean of the rate instead, and are a third off in flat rooms.
    """
    across = (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS * np.pi / 2
    up = ((np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS)[:, None]
    level = np.sqrt(1 - up**2)
    walls = level * np.cos(across) / size[0] + level * np.sin(across) / size[1] + up / size[2]
    walls = walls.ravel()  # met by metre travelled
    # Energy yet to come after x = (loss at a wall, in nepers) * (metres travelled).
    x = np.geomspace(0.01, 100, 512) * np.max(size)
    left = np.mean(np.exp(-x[:, None] * walls) / walls, axis=1) / np.mean(1 / walls)
    start, stop = np.interp((5, 35), -10 * np.log10(left), x)
    return float(-np.expm1(-2 * (stop - start) / (SPEED_OF_SOUND * rt60)))


def make_response(room: Room, rate: int) -> np.ndarray:
    """The response of a room, float32 [rt60 * rate samples and the sound's way], peak 1."""
    import pyroomacoustics  # takes a second, which nothing else has to wait for

    # Sums in another order would differ in the last bits with the number of threads.
    pyroomacoustics.constants.set("num_threads", 1)
    pyroomacoustics.constants.set("c", SPEED_OF_SOUND)
    box = pyroomacoustics.ShoeBox(
        room.size,
        fs=rate,
        materials=pyroomacoustics.Material(absorption(room.size, room.rt60)),
        # So many walls are met along the shortest way within the reverberation time.
        max_order=int(np.ceil(SPEED_OF_SOUND * room.rt60 / room.size.min())),
    )
    box.add_source(room.source)
    box.add_microphone(room.microphone)
    box.compute_rir()
    distance = np.linalg.norm(room.source - room.microphone)
    end = round((room.rt60 + distance / SPEED_OF_SOUND) * rate)
    return _peak_one(box.rir[0][0][:end])


def reverberation_time(response: np.ndarray, rate: int) -> float:
    """RT60 in seconds: the slope of Schroeder's backward integral from -5 to -35 dB (T30)."""
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    decay = 10 * np.log10(energy[energy > 0] / energy[0])
    start, stop = np.searchsorted(-decay, (5, 35))
    slope = np.polyfit(np.arange(start, stop) / rate, decay[start:stop], 1)[0]
    return float(-60 / slope)


def direct_path(response: np.ndarray) -> np.ndarray:
    """The direct path of `response` [samples]: from the first sample above a tenth of the peak to
    the first below it after the peak; float32, zeros before it, and it ends with it."""
    level = np.abs(response)
    peak = int(np.argmax(level))
    loud = level > _DIRECT_ABOVE * level[peak]
    start = int(np.argmax(loud))
    quiet = np.flatnonzero(~loud[peak:])
    stop = peak + int(quiet[0]) if len(quiet) else len(response)
    direct = response[:stop].astype(np.float32)
    direct[:start] = 0
    return direct


def reverberate(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`wave` [samples] through a room: its first samples of the same number, float32."""
    return oaconvolve(wave, response)[: len(wave)].astype(np.float32)


def trim(response: np.ndarray, rate: int) -> np.ndarray:
    """A response brought to peak 1, from 1 ms before its direct path on: float32 [samples].

    The time sound takes to the microphone is of no interest, and would push speech out of a cut.
    """
    start = int(np.argmax(np.abs(direct_path(response)) > 0))
    return _peak_one(response[max(0, start - round(_LEAD_SECONDS * rate)) :])


def _peak_one(response: np.ndarray) -> np.ndarray:
    return (response / np.max(np.abs(response))).astype(np.float32)

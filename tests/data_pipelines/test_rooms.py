"""Made rooms sound as long as they should; the direct path is what arrives first."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import simulation
from data_pipelines.simulation import Rooms
from quark_jax.errors import UserError

RATE = 16_000
ROOMS = Rooms()


def decay_seconds(response: np.ndarray, rate: int) -> float:
    """Written anew: twice the time Schroeder's integral takes from -5 to -35 dB."""
    left = np.cumsum(response.astype(np.float64)[::-1] ** 2)[::-1]
    db = 10 * np.log10(left / left[0] + 1e-30)
    return 2 * (np.argmax(db < -35) - np.argmax(db < -5)) / rate


@pytest.mark.parametrize(
    ("size", "rt60", "rate"),
    [
        ((5, 5, 3), 0.1, 16_000),
        ((5, 10, 3), 0.4, 16_000),
        ((10, 10, 3), 0.6, 16_000),  # flat: Eyring's formula is a third off here
        ((8, 6, 4), 0.5, 48_000),
    ],
)
def test_a_room_has_the_reverberation_time_asked_for(size, rt60, rate):
    size = np.array(size, float)
    room = simulation.Room(size, size / 2 + (1, 0.5, -0.2), size / 2 + (0, 0, -0.3), rt60)
    response = simulation.make_response(room, rate)
    assert decay_seconds(response, rate) == pytest.approx(rt60, rel=0.12)
    assert simulation.reverberation_time(response, rate) == pytest.approx(rt60, rel=0.12)
    assert response.dtype == np.float32 and np.max(np.abs(response)) == 1


def test_the_direct_path_arrives_when_and_as_loud_as_physics_says():
    """Twice the distance is half the level, at the speed of sound."""
    size = np.array((9.0, 9.0, 4.0))
    peaks, levels = [], []
    place = np.array((4.5, 4.5, 2.0))
    for away in (np.array((1.0, 0, 0)), np.array((2.0, 0, 0))):
        room = simulation.Room(size, place + away, place, 0.3)
        response = simulation.make_response(room, RATE)
        direct = simulation.direct_path(response)
        peaks.append(np.argmax(np.abs(direct)))
        levels.append(np.sum(direct**2) / np.sum(response[len(direct) :] ** 2))
    assert peaks[1] - peaks[0] == pytest.approx(RATE / 343, abs=1)
    # The direct path falls by 6 dB against reverberation that is the same all over the room.
    assert 10 * np.log10(levels[0] / levels[1]) == pytest.approx(6, abs=2)


def test_rooms_are_drawn_from_their_ranges():
    drawn = [simulation.draw_room(ROOMS, number) for number in range(300)]
    sizes = np.array([room.size for room in drawn])
    away = np.array([room.source - room.microphone for room in drawn])
    for values, limits in [
        (sizes[:, 0], ROOMS.length),
        (sizes[:, 1], ROOMS.width),
        (sizes[:, 2], ROOMS.height),
        (np.hypot(away[:, 0], away[:, 1]), ROOMS.distance),
        (np.array([room.rt60 for room in drawn]), ROOMS.rt60),
    ]:
        low, high = limits
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    assert all(np.all((room.source > 0) & (room.source < room.size)) for room in drawn)


def test_a_room_is_a_function_of_seed_and_number():
    def response(seed: int, number: int) -> np.ndarray:
        rooms = Rooms(seed=seed, rt60=(0.1, 0.2))
        return simulation.make_response(simulation.draw_room(rooms, number), RATE)

    assert np.array_equal(response(0, 3), response(0, 3))
    assert not np.array_equal(response(0, 3)[:500], response(0, 4)[:500])
    assert not np.array_equal(response(0, 3)[:500], response(1, 3)[:500])


def test_the_direct_path_begins_and_ends_at_a_tenth_of_the_peak():
    response = np.array([0, 0.05, -0.3, 0.05, 1, -0.5, 0.2, 0.09, 0.5, 0.3], np.float32)
    direct = simulation.direct_path(response)
    assert np.array_equal(direct, np.array([0, 0, -0.3, 0.05, 1, -0.5, 0.2], np.float32))
    assert np.array_equal(simulation.direct_path(response[:6])[2:], response[2:6])  # never below
    assert np.array_equal(simulation.direct_path(-response), -direct)


def test_reverberation_is_convolution_and_keeps_the_length():
    rng = np.random.default_rng(0)
    wave, response = rng.standard_normal(900), rng.standard_normal(300)
    got = simulation.reverberate(wave.astype(np.float32), response.astype(np.float32))
    assert got.dtype == np.float32 and got.shape == wave.shape
    assert np.allclose(got, np.convolve(wave, response)[:900], atol=1e-4)


def test_trimming_leaves_a_millisecond_before_the_direct_path():
    response = np.zeros(4000)
    response[1000:1003] = 0.2, 0.4, 0.1
    trimmed = simulation.trim(response, RATE)
    assert len(trimmed) == 3000 + 16 and np.argmax(trimmed) == 17 and trimmed.max() == 1
    assert np.argmax(simulation.trim(response[999:], RATE)) == 2  # nothing to take away


@pytest.mark.parametrize(
    "wrong",
    [{"distance": (1, 3)}, {"source_height": (1, 3)}, {"rt60": (0, 1)}, {"count": 0}],
)
def test_impossible_rooms_are_refused(wrong):
    with pytest.raises(UserError, match="rooms"):
        replace(ROOMS, **wrong)

"""Echoes: their level, their way to the microphone, and examples of echo cancellation."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import simulation
from data_pipelines.examples import EchoCancellation
from data_pipelines.simulation import Echo, EchoPlan, Rooms, add_echo

RATE = 16_000
IDENTITY = np.ones(1, np.float32)
PLAN = EchoPlan(
    ser_db=0.0,
    near_peak=0.2,
    far_peak=0.4,
    near_span=(0.0, 1.0),
    far_span=(0.0, 1.0),
    delay_seconds=0.0,
)


@pytest.fixture(scope="module")
def near(entries) -> np.ndarray:
    return simulation.fit(entries[0].read(RATE), 3 * RATE)


@pytest.fixture(scope="module")
def far(entries) -> np.ndarray:
    return simulation.fit(entries[40].read(RATE), 3 * RATE)


def active_db(wave: np.ndarray) -> float:
    """Written anew: frames of 320 samples within 40 dB of the loudest, all frames full."""
    powers = (wave.astype(np.float64).reshape(-1, 320) ** 2).mean(1)
    return 10 * np.log10(powers[powers >= powers.max() * 1e-4].mean())


@pytest.mark.parametrize("ser_db", [-10.0, 0.0, 10.0])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_the_echo_comes_at_its_ratio(near, far, ser_db, clip):
    plan = replace(PLAN, ser_db=ser_db, clip=clip, near_span=(0.1, 0.6))
    response = np.array((0, 1, 0, 0.5, -0.2), np.float32)
    microphone, target, _ = add_echo(near, far, plan, rate=RATE, response=response)
    echo = microphone.astype(np.float64) - target
    assert active_db(target) - active_db(echo) == pytest.approx(ser_db, abs=0.1)
    assert max(np.abs(microphone).max(), np.abs(target).max()) <= np.float32(0.99)


def test_a_plain_echo_is_the_delayed_reference(near, far):
    plan = replace(PLAN, delay_seconds=0.05)
    microphone, target, reference = add_echo(near, far, plan, rate=RATE, response=IDENTITY)
    echo = microphone - target
    assert np.allclose(echo[:800], 0, atol=1e-6)
    assert np.corrcoef(echo[800:], reference[:-800])[0, 1] > 0.9999
    assert np.abs(target).max() == pytest.approx(0.2)
    assert np.abs(reference).max() == pytest.approx(0.4)


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("heard", [800, 1600])
def test_what_the_far_end_says_too_late_has_no_echo(near, heard, clip):
    """Its last 50 or 100 ms; the delay is of 100 ms, and the way through the room of one more."""
    far = np.zeros_like(near)
    far[-heard:] = 0.3 * np.sin(np.arange(heard))
    plan = replace(PLAN, delay_seconds=0.1, clip=clip)
    response = np.array((*[0] * 16, 1, 0.3), np.float32)
    microphone, target, reference = add_echo(near, far, plan, rate=RATE, response=response)
    assert np.array_equal(microphone, target) and np.abs(target).max() == pytest.approx(0.2)
    assert np.abs(reference).max() == pytest.approx(0.4)
    far[-1700:] = 0.3 * np.sin(np.arange(1700))
    microphone, target, _ = add_echo(near, far, plan, rate=RATE, response=response)
    assert np.abs((microphone - target)[-80:]).max() > 0.01


def test_near_noise_is_at_the_microphone_alone_and_at_its_ratio(near, far):
    noise = simulation.coloured_noise(len(near), 0, np.random.default_rng(0))
    quiet, target, reference = add_echo(near, far, PLAN, rate=RATE, response=IDENTITY)
    plan = replace(PLAN, near_snr_db=12.0)
    waves = add_echo(near, far, plan, rate=RATE, response=IDENTITY, near_noise=noise)
    assert np.array_equal(waves[1], target) and np.array_equal(waves[2], reference)
    added = waves[0].astype(np.float64) - quiet
    assert active_db(target) - active_db(added) == pytest.approx(12, abs=0.1)


def test_far_noise_is_heard_in_the_reference_and_its_echo(near, far):
    noise = simulation.coloured_noise(len(near), 0, np.random.default_rng(0))
    plan = replace(PLAN, far_snr_db=0.0)
    microphone, target, reference = add_echo(
        near, far, plan, rate=RATE, response=IDENTITY, far_noise=noise
    )
    assert np.corrcoef(reference, noise)[0, 1] > 0.3
    assert np.corrcoef(microphone - target, reference)[0, 1] > 0.9999


def test_each_end_speaks_in_its_span(near, far):
    plan = replace(PLAN, near_span=(0.0, 0.5), far_span=(0.25, 1.0))
    _, target, reference = add_echo(near, far, plan, rate=RATE, response=IDENTITY)
    half, quarter = len(near) // 2, len(near) // 4
    assert not target[half:].any() and not reference[:quarter].any()
    inside = slice(400, half - 400)
    assert np.corrcoef(target[inside], near[inside])[0, 1] > 0.9999


def test_a_span_is_faded_over_10_ms():
    part = simulation.speak_in(np.ones(RATE, np.float32), (0.25, 0.5), RATE)
    assert np.allclose(part[4000:4160], np.arange(1, 161) / 160)
    assert np.allclose(part[7840:8000], np.arange(160, 0, -1) / 160)
    assert np.all(part[4160:7840] == 1) and not part[:4000].any() and not part[8000:].any()


def test_a_silent_span_is_not_taken(near):
    wave = near.copy()
    wave[:RATE] = 0
    assert simulation.speak_in(wave, (0.0, 0.3), RATE) is wave


def test_the_loudspeaker_distorts_as_published():
    """Against the formula as printed, on a tone far above the high-pass."""
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    got = simulation.loudspeaker(tone, RATE, 0.8)
    hard = np.clip(tone / 0.3, -0.8, 0.8)
    b = 1.5 * hard - 0.3 * hard**2
    expected = 4 * (2 / (1 + np.exp(-np.where(b > 0, 4, 0.5) * b)) - 1)
    spectra = [np.abs(np.fft.rfft(wave[RATE // 2 :])) for wave in (got, expected)]
    assert np.allclose(*(s[500::500][:6] for s in spectra), rtol=0.02)
    assert spectra[0][1000] > 100  # the second harmonic, of 1 kHz in half a second
    assert spectra[0][0] < 0.01 * spectra[1][0]


def test_echoes_are_drawn_as_often_and_from_where_they_should():
    config, rng = Echo(), np.random.default_rng(1)
    plans = [simulation.draw_echo(config, rng) for _ in range(3000)]
    for probability, values, (low, high) in [
        (0.8, [plan.clip for plan in plans], (0.6, 1.0)),
        (0.5, [plan.near_snr_db for plan in plans], (0, 40)),
        (0.5, [plan.far_snr_db for plan in plans], (0, 40)),
        (1.0, [plan.ser_db for plan in plans], (-10, 10)),
        (1.0, [plan.delay_seconds for plan in plans], (0, 0.1)),
        (1.0, [plan.near_span[1] - plan.near_span[0] for plan in plans], (0.3, 0.7)),
        (1.0, [plan.far_span[1] - plan.far_span[0] for plan in plans], (0.6, 1.0)),
    ]:
        there = [value for value in values if value is not None]
        spread = 4 * np.sqrt(3000 * probability * (1 - probability))
        assert abs(len(there) - 3000 * probability) <= spread
        edge = 0.03 * (high - low)
        assert low <= min(there) < low + edge and high - edge < max(there) <= high + 1e-9
    talk = [min(p.near_span[1], p.far_span[1]) - max(p.near_span[0], p.far_span[0]) for p in plans]
    assert np.mean(np.array(talk) > 0.1) > 0.9  # double talk
    assert all(0 <= start < stop <= 1 + 1e-9 for plan in plans for start, stop in [plan.far_span])


def test_examples_hold_microphone_far_end_and_near_end(entries):
    rooms = Rooms(count=3, rt60=(0.1, 0.2))
    source = EchoCancellation(entries, rate=48_000, seconds=2, seed=3, rooms=rooms)
    again = EchoCancellation(entries, rate=48_000, seconds=2, seed=3, rooms=rooms)
    speaker = {entry.id: entry.speaker for entry in entries}
    last = None
    for index in (4, 17, 30):
        example, same = source[index], again[index]
        assert example.task == "aec" and example.target.shape == (96_000,)
        assert example.input.shape == example.reference.shape == (32_000,)
        assert np.array_equal(example.input, same.input) and example.provenance == same.provenance
        provenance = example.provenance
        assert provenance["file"] == entries[index].id
        assert speaker[provenance["file"]] != speaker[provenance["far_end"]]
        assert last is None or not np.array_equal(example.input, last)
        last = example.input
    assert source.describe()["rooms"]["count"] == 3


def test_recordings_of_nobody_can_echo_too(entries):
    nameless = [replace(entry, speaker="") for entry in entries[:5]]
    source = EchoCancellation(nameless, seconds=1, rooms=Rooms(count=1, rt60=(0.1, 0.2)))
    assert len({source[index].provenance["far_end"] for index in range(5)}) > 1

"""Each effect does what it says, on real speech."""

import numpy as np
import pytest

from data_pipelines import simulation

RATE = 16_000


@pytest.fixture(scope="module")
def speech(entries) -> np.ndarray:
    """5 s of speech with a second of silence in it."""
    wave = simulation.fit(entries[0].read(RATE), 5 * RATE).copy()
    wave[2 * RATE : 3 * RATE] = 0
    return wave


def power_over_active(wave: np.ndarray) -> float:
    """Written anew: frames of 320 samples within 40 dB of the loudest, all frames full."""
    powers = (wave.astype(np.float64).reshape(-1, 320) ** 2).mean(1)
    return powers[powers >= powers.max() * 1e-4].mean()


def longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(int), [0]))))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 7.3, 20.0])
@pytest.mark.parametrize("kind", ["white", "pink", "gaps"])
def test_snr_holds_on_the_active_parts(speech, snr_db, kind):
    rng = np.random.default_rng(1)
    noise = simulation.coloured_noise(len(speech), {"white": 0, "pink": 1, "gaps": 0}[kind], rng)
    if kind == "gaps":
        noise[RATE : 3 * RATE] = 0
    noisy = simulation.add_noise(speech, noise, snr_db, RATE)
    added = noisy.astype(np.float64) - speech
    measured = 10 * np.log10(power_over_active(speech) / power_over_active(added))
    assert abs(measured - snr_db) < 0.1


def test_silence_does_not_change_the_snr(speech):
    rng = np.random.default_rng(2)
    talk = speech[: 2 * RATE]
    padded = np.concatenate((talk, np.zeros(3 * RATE, np.float32)))
    noise = simulation.coloured_noise(len(padded), 0, rng)
    alone = simulation.add_noise(talk, noise[: len(talk)], 5, RATE) - talk
    beside = simulation.add_noise(padded, noise, 5, RATE) - padded
    ratio = np.mean(beside[: len(talk)] ** 2) / np.mean(alone**2)
    assert abs(10 * np.log10(ratio)) < 0.1


@pytest.mark.parametrize("silent", ["speech", "noise"])
def test_snr_of_silence_is_refused(speech, silent):
    waves = {"speech": speech, "noise": speech} | {silent: np.zeros_like(speech)}
    with pytest.raises(ValueError, match="silence"):
        simulation.add_noise(waves["speech"], waves["noise"], 5, RATE)


def test_clipping_stands_at_the_quantiles(speech):
    low, high = np.quantile(speech, (0.05, 0.93))
    clipped = simulation.clip_quantiles(speech, 0.05, 0.93)
    assert clipped.min() == np.float32(low) and clipped.max() == np.float32(high)
    inside = (speech > low) & (speech < high)
    assert np.array_equal(clipped[inside], speech[inside])
    assert abs(np.mean(speech > high) - 0.07) < 1e-3


def test_packet_loss_has_its_rate_and_bound():
    rng = np.random.default_rng(3)
    runs = set()
    for _ in range(400):
        packets, rate = int(rng.integers(20, 400)), rng.uniform(0.05, 0.25)
        lost = simulation.lost_packets(packets, rate, 10, rng)
        assert lost.shape == (packets,)
        assert lost.sum() == round(packets * rate)
        runs.add(longest_run(lost))
    assert max(runs) == 10 and len(runs) > 5
    positions = np.mean([simulation.lost_packets(50, 0.2, 10, rng) for _ in range(4000)], axis=0)
    assert np.all(np.abs(positions - 0.2) < 0.04)  # no place is spared or preferred


@pytest.mark.parametrize(("packets", "rate", "longest"), [(1, 1.0, 1), (3, 0.9, 1), (20, 0.95, 3)])
def test_packet_loss_keeps_its_bound_when_there_is_too_much(packets, rate, longest):
    lost = simulation.lost_packets(packets, rate, longest, np.random.default_rng(0))
    assert len(lost) == packets and longest_run(lost) <= longest


def test_lost_packets_are_zero_and_the_rest_is_untouched(speech):
    wave = speech[:1000] + 1
    lost = np.array([False, True, False, True])
    got = simulation.lose_packets(wave, lost, 320)
    assert np.all(got[320:640] == 0) and np.all(got[960:] == 0)
    assert np.array_equal(got[:320], wave[:320]) and np.array_equal(got[640:960], wave[640:960])


@pytest.mark.parametrize(("exponent", "slope"), [(0, 0.0), (1, -3.01), (2, -6.02)])
def test_coloured_noise_falls_by_its_slope(exponent, slope):
    noise = simulation.coloured_noise(1 << 18, exponent, np.random.default_rng(4))
    power = np.abs(np.fft.rfft(noise.astype(np.float64))) ** 2
    octaves = [10 * np.log10(power[1 << k : 2 << k].mean()) for k in range(9, 17)]
    assert np.allclose(np.diff(octaves), slope, atol=0.5)
    assert abs(np.mean(noise**2) - 1) < 1e-3


def test_hum_is_mains_and_its_harmonics():
    hum = simulation.hum(10 * RATE, RATE, np.random.default_rng(5))
    power = np.abs(np.fft.rfft(hum * np.hanning(len(hum)))) ** 2
    lines = power > power.max() * 1e-6
    mains = np.argmax(power[:700]) / 10
    assert min(abs(mains - 50), abs(mains - 60)) < 0.2
    offsets = np.flatnonzero(lines) / 10 / mains
    assert np.all(np.abs(offsets - np.round(offsets)) < 0.03) and np.round(offsets).max() >= 10


@pytest.mark.parametrize(("rate", "band_rate"), [(16_000, 4000), (16_000, 8000), (48_000, 16_000)])
def test_a_limited_band_ends_at_half_its_rate(rate, band_rate):
    wave = simulation.coloured_noise(3 * rate, 0, np.random.default_rng(6)) * 0.1
    narrow = simulation.limit_band(wave, rate, band_rate)
    assert narrow.shape == wave.shape and narrow.dtype == np.float32
    window = np.hanning(len(wave))  # where the wave begins and ends it is not in the band
    ratio = np.abs(np.fft.rfft(narrow * window) / np.fft.rfft(wave * window)) ** 2
    band = round(len(ratio) * band_rate / rate)
    above, below = ratio[round(1.1 * band) :], ratio[: round(0.9 * band)]
    assert 10 * np.log10(np.median(above)) < -80
    assert abs(10 * np.log10(np.median(below))) < 0.1
    lag = np.argmax(np.correlate(narrow, wave[200:-200], "valid"))
    assert lag == 200  # aligned


@pytest.mark.parametrize("band_rate", [16_000, 48_000])
def test_a_band_as_wide_as_the_rate_changes_nothing(speech, band_rate):
    assert simulation.limit_band(speech, RATE, band_rate) is speech


def test_a_limited_band_keeps_odd_lengths(speech):
    assert simulation.limit_band(speech[:12_347], RATE, 4000).shape == (12_347,)


def test_babble_levels_its_voices(speech):
    other = np.roll(speech, 1234)
    loud = simulation.babble([speech, other * 1e-3], RATE)
    level = simulation.babble([speech, other], RATE)
    assert np.allclose(loud, level, atol=1e-4)


def test_short_audio_wraps_round():
    wave = np.arange(5, dtype=np.float32)
    assert simulation.fit(wave, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert simulation.fit(wave, 3, 1).tolist() == [1, 2, 3]

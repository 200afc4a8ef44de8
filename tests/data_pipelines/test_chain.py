"""The chain of degradations: order, levels, probabilities, and what becomes of the target."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import Degradation, degrade, simulation
from data_pipelines.simulation import EXTRACTION, BandLimit, Clipping, PacketLoss, Plan

RATE = 16_000


@pytest.fixture(scope="module")
def speech(entries) -> np.ndarray:
    """5 s of speech with a second of silence in it."""
    wave = simulation.fit(entries[0].read(RATE), 5 * RATE).copy()
    wave[2 * RATE : 3 * RATE] = 0
    return wave


@pytest.fixture(scope="module")
def other(entries) -> np.ndarray:
    return simulation.fit(entries[40].read(RATE), 5 * RATE)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return simulation.coloured_noise(5 * RATE, 1, np.random.default_rng(6))


@pytest.fixture(scope="module")
def response() -> np.ndarray:
    """A direct path of 3 samples, 20 samples late, and a tail."""
    rng = np.random.default_rng(7)
    tail = rng.standard_normal(6000) * np.exp(-np.arange(6000) / 900) * 0.05
    wave = np.concatenate((np.zeros(20), (0.3, 1.0, 0.2), np.zeros(100), tail))
    return wave.astype(np.float32)


def active_db(wave: np.ndarray) -> float:
    """Written anew: frames of 320 samples within 40 dB of the loudest, all frames full."""
    powers = (wave.astype(np.float64).reshape(-1, 320) ** 2).mean(1)
    return 10 * np.log10(powers[powers >= powers.max() * 1e-4].mean())


@pytest.mark.parametrize("sir_db", [-5.0, 0.0, 4.2, 20.0])
def test_the_interferer_comes_at_its_ratio(speech, other, sir_db):
    got, target = degrade(speech, Plan(peak=0.3, sir_db=sir_db), rate=RATE, interferer=other)
    added = got.astype(np.float64) - target
    assert active_db(target) - active_db(added) == pytest.approx(sir_db, abs=0.1)
    assert np.corrcoef(added, other)[0, 1] > 0.999


def test_the_target_keeps_the_direct_path_and_the_input_all_of_the_room(speech, response):
    got, target = degrade(speech, Plan(peak=0.3, reverberant=True), rate=RATE, response=response)
    clean = speech * (0.3 / np.abs(speech).max())
    expected = 0.3 * np.roll(clean, 20) + np.roll(clean, 21) + 0.2 * np.roll(clean, 22)
    assert np.allclose(target[22:], expected[22:], atol=1e-5)
    assert np.allclose(got, np.convolve(clean, response)[: len(clean)], atol=1e-5)


def test_noise_is_measured_against_all_reverberant_speech(speech, other, response, noise):
    plan = Plan(peak=0.1, sir_db=0.0, reverberant=True)
    waves = {"interferer": other, "response": response}
    quiet, target = degrade(speech, plan, rate=RATE, **waves)
    plan = replace(plan, snr_db=7.0, peak_limit=100.0)
    noisy, same = degrade(speech, plan, rate=RATE, noise=noise, **waves)
    assert np.array_equal(target, same)
    ratio = active_db(quiet) - active_db(noisy.astype(np.float64) - quiet)
    assert ratio == pytest.approx(7.0, abs=0.1)


def test_the_channel_is_applied_last_and_in_the_order_of_the_plan(speech, noise):
    narrow, clip = BandLimit(4000), Clipping(0.1, 0.9)
    plan = Plan(peak=0.2, snr_db=0.0)
    before, target = degrade(speech, plan, rate=RATE, noise=noise)
    for channel in ((narrow, clip), (clip, narrow)):
        expected = before
        for effect in channel:
            expected = effect(expected, RATE)
        got, same = degrade(speech, replace(plan, channel=channel), rate=RATE, noise=noise)
        assert np.array_equal(got, expected) and np.array_equal(same, target)
    other_way = clip(narrow(before, RATE), RATE)
    assert not np.allclose(got, other_way, atol=1e-3)


def test_packets_are_lost_as_the_seed_says(speech):
    loss = PacketLoss(0.02, 0.2, 10, seed=5)
    got = loss(speech + 1, RATE)
    assert np.array_equal(got, loss(speech + 1, RATE))
    assert not np.array_equal(got, replace(loss, seed=6)(speech + 1, RATE))
    lost = np.all(got.reshape(-1, 320) == 0, axis=1)
    assert lost.sum() == 50 and np.array_equal(lost, np.any(got.reshape(-1, 320) == 0, axis=1))


def test_input_and_target_are_limited_together(speech, other, response, noise):
    plan = Plan(peak=0.99, sir_db=-5.0, reverberant=True, snr_db=-5.0)
    waves = {"interferer": other, "response": response, "noise": noise}
    got, target = degrade(speech, plan, rate=RATE, **waves)
    free, free_target = degrade(speech, replace(plan, peak_limit=100.0), rate=RATE, **waves)
    assert np.abs(got).max() == np.float32(0.99) and np.abs(free).max() > 2
    scale = 0.99 / max(np.abs(free).max(), np.abs(free_target).max())
    assert np.allclose(got, free * scale, atol=1e-6)
    assert np.allclose(target, free_target * scale, atol=1e-6)
    # Here the target is the louder of the two.
    twice = np.ones(2, np.float32)
    loud = replace(plan, sir_db=None, snr_db=None, channel=(Clipping(0.2, 0.8),))
    got, target = degrade(speech, loud, rate=RATE, response=twice)
    assert np.abs(target).max() == np.float32(0.99) > np.abs(got).max()


def test_nothing_planned_leaves_the_speech_at_its_peak(speech):
    got, target = degrade(speech, Plan(peak=0.4), rate=RATE)
    assert np.array_equal(got, target) and np.abs(target).max() == pytest.approx(0.4)
    assert np.allclose(target / 0.4, speech / np.abs(speech).max(), atol=1e-6)


@pytest.mark.parametrize("missing", ["interferer", "response", "noise"])
def test_what_the_plan_needs_has_to_be_given(speech, response, noise, missing):
    waves = {"interferer": speech, "response": response, "noise": noise} | {missing: None}
    with pytest.raises(ValueError, match="needs"):
        degrade(speech, Plan(0.5, 0.0, True, 0.0), rate=RATE, **waves)


def test_effects_come_as_often_as_published():
    rng = np.random.default_rng(1)
    plans = [simulation.draw(Degradation(), rng) for _ in range(4000)]

    def often(probability: float, count: int, trials: int = len(plans)) -> bool:
        """Within 4 standard deviations of the binomial."""
        spread = 4 * np.sqrt(trials * probability * (1 - probability))
        return abs(count - trials * probability) < spread

    assert often(0.2, sum(plan.sir_db is not None for plan in plans))
    assert often(0.3, sum(plan.reverberant for plan in plans))
    assert often(0.8, sum(plan.snr_db is not None for plan in plans))
    effects = [effect for plan in plans for effect in plan.channel]
    for kind in (BandLimit, Clipping, PacketLoss):
        assert often(0.3, sum(isinstance(effect, kind) for effect in effects))
    rates = [effect.band_rate for effect in effects if isinstance(effect, BandLimit)]
    assert all(often(1 / 3, rates.count(rate), len(rates)) for rate in (4000, 8000, 16_000))
    three = [plan.channel for plan in plans if len(plan.channel) == 3]
    firsts = [tuple(map(type, channel)) for channel in three]
    assert len(set(firsts)) == 6  # every order
    assert all(often(1 / 6, firsts.count(order), len(three)) for order in set(firsts))


@pytest.mark.parametrize(("config", "sir_db"), [(Degradation(), (2, 20)), (EXTRACTION, (-5, 5))])
def test_values_fill_the_published_ranges(config, sir_db):
    rng = np.random.default_rng(2)
    plans = [simulation.draw(config, rng) for _ in range(3000)]
    effects = [effect for plan in plans for effect in plan.channel]
    clips = [effect for effect in effects if isinstance(effect, Clipping)]
    losses = [effect for effect in effects if isinstance(effect, PacketLoss)]
    assert {(loss.packet_seconds, loss.longest) for loss in losses} == {(0.02, 10)}
    for values, (low, high) in [
        ([plan.sir_db for plan in plans if plan.sir_db is not None], sir_db),
        ([plan.snr_db for plan in plans if plan.snr_db is not None], (-5, 20)),
        ([plan.peak for plan in plans], (0.1, 0.99)),
        ([clip.lower for clip in clips], (0, 0.1)),
        ([clip.upper for clip in clips], (0.9, 1)),
        ([loss.share for loss in losses], (0.05, 0.25)),
    ]:
        edge = 0.03 * (high - low)
        assert low <= min(values) < low + edge and high - edge < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.04 * (high - low))


def test_extraction_always_has_an_interferer():
    rng = np.random.default_rng(3)
    assert all(simulation.draw(EXTRACTION, rng).sir_db is not None for _ in range(500))

"""What each task is judged by, on waves that are known."""

import numpy as np
import pytest

from quark_jax.evaluation import judging, si_sdr
from quark_jax.evaluation.judging import METRICS, Heard
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.suites import SUITES

RATE = 16_000


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(RATE).astype(np.float32) / 4


@pytest.fixture
def mixture() -> Heard:
    voices = _noise(0), _noise(1)
    return Heard(Item("a", ()), voices, sum(voices), reference=_noise(2), other=_noise(3))


def test_separation_counts_the_best_permutation(mixture):
    one, two = mixture.targets
    results = (one + 0.1 * two, two + 0.3 * one)
    expected = np.mean([si_sdr(one, results[0]), si_sdr(two, results[1])])
    untouched = np.mean([si_sdr(voice, mixture.input) for voice in mixture.targets])
    for order in (results, results[::-1]):
        value, gain = (
            METRICS["ss"][k].value(mixture, order, RATE) for k in ("si_sdr", "si_sdr_gain")
        )
        assert value == pytest.approx(expected)
        assert gain == pytest.approx(expected - untouched)


def test_similarity_is_to_both_voices_in_the_best_permutation(mixture, monkeypatch):
    one, two = mixture.targets
    alike = lambda x, y, rate: float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))  # noqa: E731
    monkeypatch.setattr(judging.quality, "speaker_similarity", alike)
    for kind, results in (("ss", (two, one)), ("ss", (one, two))):
        assert METRICS[kind]["similarity"].value(mixture, results, RATE) == pytest.approx(1)
    both_one = METRICS["ss"]["similarity"].value(mixture, (one, one), RATE)
    assert both_one == pytest.approx((1 + alike(one, two, RATE)) / 2)
    nearer = METRICS["tse"]["nearer"].value
    assert nearer(mixture, (mixture.reference,), RATE) == 1
    assert nearer(mixture, (mixture.other,), RATE) == 0


def test_extraction_of_sounds(mixture):
    heard = Heard(mixture.item, mixture.targets[:1], mixture.input)
    target, result = heard.targets[0], heard.targets[0] + 0.1 * mixture.targets[1]
    metrics = METRICS["lass"]
    expected = 10 * np.log10(np.sum(target**2) / np.sum((result - target) ** 2))
    assert metrics["sdr"].value(heard, (result,), RATE) == pytest.approx(expected, abs=1e-4)
    gain = metrics["sdr_gain"].value(heard, (result,), RATE)
    assert gain == pytest.approx(20, abs=1e-4)  # a tenth of the other sound is left
    assert metrics["sdr_gain"].value(heard, (heard.input,), RATE) == 0


def test_every_suite_is_judged_and_told_of():
    for name, about in SUITES.items():
        assert about.kind in METRICS, name
        known = {*METRICS[about.kind], "bitrate", "frame_rate", "codebooks", "utmos"}
        for each in about.published:
            assert set(each.values) <= known, name
            assert each.source

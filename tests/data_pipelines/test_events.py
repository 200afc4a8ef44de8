"""Captioned sounds are mixed, made and edited as the examples claim. The sounds are tones, so that
what is in a wave can be read from its spectrum."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import Entry
from data_pipelines.examples import (
    EventEditing,
    EventEdits,
    LanguageQueriedSeparation,
    Mixing,
    TextToAudio,
)
from data_pipelines.examples.event_editing import change_speed
from data_pipelines.simulation import active_power
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000
TONES = {"a low hum": 300, "a car horn": 700, "a bird whistles": 1500, "a kettle boils": 3100}


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> list[Entry]:
    """A tone of 0.5 s or more by caption, with 0.26 s of silence on both sides; whole
    frames of 20 ms, so that just the silence is trimmed."""
    folder = tmp_path_factory.mktemp("tones")
    found = []
    for number, (caption, pitch) in enumerate(TONES.items()):
        time = np.arange(8000 + 1600 * number) / RATE
        wave = np.pad(0.3 * np.sin(2 * np.pi * pitch * time), 4160).astype(np.float32)
        path = folder / f"{pitch}.wav"
        audio.write(path, wave, RATE)
        found.append(Entry(path, str(pitch), captions=(caption, f"{caption.capitalize()}.")))
    return found


def level(wave: np.ndarray, pitch: float) -> float:
    """Amplitude of a tone times its duration in samples."""
    phase = np.exp(-2j * np.pi * pitch / RATE * np.arange(len(wave)))
    return float(2 * np.abs(np.dot(wave, phase)))


def pitches(wave: np.ndarray) -> set[int]:
    """Of which recordings there is a tone: none is more than 30 dB below the strongest."""
    levels = {pitch: level(wave, pitch) for pitch in TONES.values()}
    return {pitch for pitch, found in levels.items() if found > 0.03 * max(levels.values())}


def pitch_of(example, number: int = 0) -> int:
    return TONES[example.provenance["captions"][number]]


def edits(tones, operation: str, count: int = 12, **changes):
    config = EventEdits(operations=(operation,), **changes)
    source = EventEditing(tones, seconds=3, seed=3, length=count, config=config)
    return [source[index] for index in range(count)]


def difference(example) -> np.ndarray:
    """Input minus target, as if both went on in silence."""
    length = max(len(example.input), len(example.target))
    waves = [np.pad(w, (0, length - len(w))) for w in (example.input, example.target)]
    return waves[0] - waves[1]


def test_a_mixture_is_the_target_and_others_at_the_ratio_it_says(tones):
    source = LanguageQueriedSeparation(tones, seconds=2, seed=5, length=20)
    ratios = []
    for index in range(20):
        example = source[index]
        assert len(example.input) == len(example.target) == 2 * RATE
        others = example.input - example.target
        ratio = 10 * np.log10(active_power(example.target, RATE) / active_power(others, RATE))
        assert abs(ratio - example.provenance["snr_db"]) < 0.1
        assert pitches(example.target) == {pitch_of(example)} == {list(TONES.values())[index % 4]}
        names = {int(name) for name in example.provenance["others"]}
        assert pitches(others) == names and pitch_of(example) not in names
        assert example.task == "lass"
        assert example.provenance["captions"][0].removeprefix("a ") in example.caption.lower()
        peak = np.max(np.abs(example.input))
        assert 0.0999 < peak < 0.9901 and np.max(np.abs(example.target)) <= 0.99
        ratios.append(ratio)
    assert min(ratios) < -4 and max(ratios) > 4


def test_the_target_is_the_recording_that_the_provenance_names(entries):
    captioned = [replace(entry, captions=(f"speech {entry.id}",)) for entry in entries[:6]]
    source = LanguageQueriedSeparation(captioned, seconds=2, seed=1, config=Mixing(others=(1, 1)))
    for index in range(6):
        example = source[index]
        start = example.provenance["start"]
        wave = captioned[index].read(RATE)[start : start + 2 * RATE]
        # Faded for 5 ms where it was cut; the longest of these are as long as the mixture.
        body = slice(200, min(len(wave), RATE))
        offset = int(np.flatnonzero(example.target)[0])
        heard = example.target[offset + 200 : offset + body.stop]
        assert np.corrcoef(heard, wave[body])[0, 1] > 0.999


def test_other_rates_keep_input_and_target_aligned(tones):
    example = LanguageQueriedSeparation(tones, rate=24_000, seconds=1.5, seed=1)[2]
    assert example.target.shape == (36_000,) and example.input.shape == (24_000,)
    low = audio.resample(example.target, 24_000, RATE)
    others = example.input - low
    assert level(others, pitch_of(example)) < 0.02 * level(example.input, pitch_of(example))


def test_a_description_goes_with_its_sound(tones):
    source = TextToAudio(tones, seconds=3, seed=1, length=40)
    for index in range(8):
        example = source[index]
        assert example.task == "tta" and example.input is None
        assert pitches(example.target) == {pitch_of(example)}
        assert len(example.target) == 8000 + 1600 * (index % 4)
        peak = np.max(np.abs(example.target))
        assert 0.0999 < peak < 0.9901
    captions = {source[index].caption for index in range(40)}
    assert len(captions) > 20 and "A car horn." in captions
    assert len(TextToAudio(tones, seconds=0.2, seed=1)[0].target) == 3200


def test_adding_and_removing_change_one_sound_and_nothing_else(tones):
    for example in edits(tones, "add"):
        assert pitches(difference(example)) == {pitch_of(example)}
        assert pitch_of(example) not in pitches(example.input)
    for example in edits(tones, "remove"):
        assert len(example.input) == len(example.target)
        assert pitches(difference(example)) == {pitch_of(example)}
        event = example.input - example.target
        sound = np.flatnonzero(np.abs(event) > 1e-6)
        outside = np.r_[0 : sound[0], sound[-1] + 1 : len(event)]
        assert np.array_equal(example.input[outside], example.target[outside])


def test_extracting_leaves_the_sound_where_it_was(tones):
    for example in edits(tones, "extract"):
        assert len(example.input) == len(example.target)
        assert pitches(example.target) == {pitch_of(example)}
        assert pitch_of(example) not in pitches(difference(example))


def test_a_replacement_begins_where_the_other_did_as_loud(tones):
    for example in edits(tones, "replace", others=(1, 1)):
        old, new = pitch_of(example), pitch_of(example, -1)
        assert old not in pitches(example.target) and new not in pitches(example.input)
        assert pitches(example.input) - {old} == pitches(example.target) - {new}
        # Both fade in at the same place.
        changed = np.flatnonzero(np.abs(difference(example)) > 1e-6)[0]
        assert np.array_equal(example.input[:changed], example.target[:changed])
        lengths = {pitch: 8000 + 1600 * n for n, pitch in enumerate(TONES.values())}
        ratio = level(example.target, new) / level(example.input, old)
        assert ratio == pytest.approx(lengths[new] / lengths[old], rel=0.03)


def test_loudness_changes_by_just_what_is_asked(tones):
    changes = []
    for example in edits(tones, "loudness", 24):
        pitch, change = pitch_of(example), example.provenance["change"]
        assert pitches(difference(example)) == {pitch}
        # The difference is the sound times one minus the gain: no leak of other tones into it.
        event = difference(example) / (1 - 10 ** (change / 20))
        rest = example.input - event
        assert level(rest, pitch) < 0.02 * level(example.input, pitch)
        measured = 20 * np.log10(level(example.target - rest, pitch) / level(event, pitch))
        assert measured == pytest.approx(change, abs=1e-3)
        assert f"by {abs(change)} d" in example.caption
        assert example.provenance["operation"] == ("louder" if change > 0 else "quieter")
        changes.append(change)
    assert min(changes) <= -9 and max(changes) >= 9 and min(map(abs, changes)) >= 3


def test_speed_changes_length_and_pitch_together():
    time = np.arange(16_000) / RATE
    wave = np.sin(2 * np.pi * 600 * time).astype(np.float32)
    for factor in (0.5, 0.75, 1.3, 2.0):
        changed = change_speed(wave, factor, RATE)
        assert len(changed) == round(16_000 / factor)
        spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed)), 1 << 18))
        assert np.argmax(spectrum) * RATE / (1 << 18) == pytest.approx(600 * factor, rel=1e-3)
        middle = changed[len(changed) // 4 : -len(changed) // 4]
        assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(1, rel=1e-2)


def test_only_the_named_sound_changes_its_speed(tones):
    for example in edits(tones, "speed", 20, others=(1, 1)):
        pitch, factor = pitch_of(example), example.provenance["change"]
        other = pitch_of(example, 1)
        assert len(example.target) <= 3 * RATE
        slower, faster = level(example.input, pitch), level(example.target, pitch * factor)
        assert faster / slower == pytest.approx(1 / factor, rel=0.05)
        assert level(difference(example), other) < 0.02 * level(example.input, other)
        assert example.provenance["operation"] == ("faster" if factor > 1 else "slower")
        percent = f"{100 * factor:g} %"
        names = (f"{factor:g} times", percent, "twice" if factor == 2 else "half")
        assert any(name in example.caption for name in names)


def test_sounds_change_places_to_the_sample(tones):
    for example in edits(tones, "order"):
        gap = round(example.provenance["change"] * RATE)
        quiet = np.abs(example.input) < 1e-7
        ends = [n for n in range(len(quiet) - gap) if quiet[n : n + gap].all()]
        first, second = example.input[: ends[0]], example.input[ends[0] + gap :]
        assert pitches(first) == {pitch_of(example)} and pitches(second) == {pitch_of(example, 1)}
        assert np.array_equal(example.target[-len(first) :], first)
        assert np.array_equal(example.target[: len(second)], second)
        assert len(example.target) == len(example.input)


def test_every_operation_comes_up_and_stays_within_bounds(tones):
    source = EventEditing(tones, seconds=1.2, seed=2, length=200)
    found = Counter()
    for index in range(120):
        example = source[index]
        found[example.provenance["operation"]] += 1
        assert example.task == "edit" and example.reference is None and example.caption
        assert max(len(example.input), len(example.target)) <= 1.2 * RATE
        assert example.input.dtype == example.target.dtype == np.float32
        assert max(np.abs(example.input).max(), np.abs(example.target).max()) <= 0.9901
    operations = "add remove replace extract louder quieter faster slower order"
    assert set(found) == set(operations.split())


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_a_sound_that_is_cut_is_not_the_silence_inside_it(tmp_path, floor):
    """Barks of 60 ms, 4 s apart; the floor is 50 dB below them."""
    rng = np.random.default_rng(0)
    entries = []
    for number, pitch in enumerate(TONES.values()):
        wave = floor * rng.standard_normal(round(4.2 * RATE))
        time = np.arange(960) / RATE
        for start in (320, 320 + 4 * RATE):
            wave[start : start + 960] += 0.4 * np.sin(2 * np.pi * pitch * time)
        path = tmp_path / f"{pitch}.wav"
        audio.write(path, wave.astype(np.float32), RATE)
        entries.append(Entry(path, str(pitch), captions=(list(TONES)[number],)))
    for operation in ("order", "speed"):
        config = EventEdits(operations=(operation,), others=(1, 1), level_db=(0, 0))
        source = EventEditing(entries, seconds=5, seed=3, length=40, config=config)
        for index in range(40):
            example = source[index]
            heard = pitches(example.input)
            assert pitch_of(example) in heard
            if operation == "order":
                assert heard == {pitch_of(example), pitch_of(example, 1)}


@pytest.mark.parametrize("kind", [LanguageQueriedSeparation, TextToAudio, EventEditing])
def test_an_example_depends_on_seed_and_index_alone(tones, kind):
    def made(example):
        given = None if example.input is None else example.input.tobytes()
        return given, example.target.tobytes(), example.caption, example.provenance

    source = kind(tones, seconds=2, seed=7, length=12)
    forwards = [made(source[index]) for index in range(12)]
    again = pickle.loads(pickle.dumps(kind(tones, seconds=2, seed=7, length=12)))
    assert forwards == [made(again[index]) for index in reversed(range(12))][::-1]
    other = kind(tones, seconds=2, seed=8, length=12)
    assert all(forwards[index] != made(other[index]) for index in range(12))
    assert source.describe() != other.describe() and source.describe() == again.describe()
    with pytest.raises(IndexError):
        source[12]


def test_unusable_recordings_are_passed_over(tmp_path, tones):
    (tmp_path / "bad.wav").write_bytes(b"RIFFjunk" * 40)
    bad = Entry(tmp_path / "bad.wav", "bad", captions=("a bell",))
    source = TextToAudio([bad, *tones], seed=1)
    assert source[0].provenance["file"] == tones[0].id
    assert [entry.id for entry in source.skipped] == ["bad"]


def test_what_cannot_be_made_is_told(tones):
    with pytest.raises(UserError, match="no recordings with captions"):
        TextToAudio([replace(entry, captions=()) for entry in tones])
    with pytest.raises(UserError, match="various captions"):
        LanguageQueriedSeparation(tones[:1])[0]
    with pytest.raises(UserError, match="'shout' is unknown"):
        EventEditing(tones, config=EventEdits(operations=("shout",)))

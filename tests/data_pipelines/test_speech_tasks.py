"""Mixtures of speech: who is in the input, in the reference, and in the target."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from etils import epath

from data_pipelines import Entry, simulation
from data_pipelines.examples import (
    OtherSpeakerExtraction,
    SpeechRestoration,
    TargetSpeakerExtraction,
    TaskMixture,
)
from data_pipelines.manifests import Unreachable
from data_pipelines.simulation import EXTRACTION, Degradation, Rooms
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000
ROOMS = Rooms(count=3, rt60=(0.1, 0.2))  # soon made
PLAIN = {"reverberation_probability": 0, "noise_probability": 0, "bandwidth_probability": 0}
PLAIN |= {"clipping_probability": 0, "packet_loss_probability": 0}
SHIFTS = {"alto": 1.0, "bass": 0.5, "solo": 0.7}


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> list[Entry]:
    """Two speakers of three recordings, one of one long recording, one of a short one, and one
    without a name. Each recording is a tone of its own."""
    folder = tmp_path_factory.mktemp("tones")
    entries = []
    names = [*["alto"] * 3, *["bass"] * 3, "solo", "brief", ""]
    for number, name in enumerate(names):
        seconds = 3.5 if name == "solo" else 1.5
        time = np.arange(round(seconds * RATE)) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (500 + 400 * number) * time)
        audio.write(folder / f"{number}.wav", wave, RATE)
        entries.append(Entry(folder / f"{number}.wav", str(number), seconds, speaker=name))
    return entries


def heard(wave: np.ndarray) -> set[str]:
    """The recordings whose tones are in `wave`."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    bins = [round((500 + 400 * number) * len(wave) / RATE) for number in range(9)]
    loud = max(spectrum[b - 2 : b + 3].max() for b in bins)
    return {str(n) for n, b in enumerate(bins) if spectrum[b - 2 : b + 3].max() > 0.1 * loud}


@pytest.mark.parametrize("kind", [TargetSpeakerExtraction, OtherSpeakerExtraction])
def test_extraction_hears_two_and_keeps_the_one_it_should(tones, kind):
    source = kind(tones, seconds=1, length=120, config=replace(EXTRACTION, **PLAIN))
    speaker = {entry.id: entry.speaker for entry in tones}
    pairs = Counter()
    for index in range(120):
        example = source[index]
        (wanted,), (enrolled,) = heard(example.target), heard(example.reference)
        (other,) = heard(example.input) - {wanted}
        provenance = example.provenance
        assert (wanted, other) == (provenance["file"], provenance["interferer"])
        assert enrolled == provenance["enrolment"]
        assert speaker[wanted] != speaker[other] and "" not in (speaker[wanted], speaker[other])
        same = wanted if kind is TargetSpeakerExtraction else other
        assert speaker[enrolled] == speaker[same]
        assert enrolled != same or same == "6"  # only solo is enrolled from the same recording
        pairs[speaker[wanted], speaker[other]] += 1
    assert example.task == {"T": "tse", "O": "rtse"}[kind.__name__[0]]
    # All speakers come up on both sides; who has no enrolment is only ever the one without.
    assert {wanted for wanted, _ in pairs} | {other for _, other in pairs} >= {"alto", "brief"}
    side = 0 if kind is TargetSpeakerExtraction else 1
    assert {pair[side] for pair in pairs} == {"alto", "bass", "solo"}
    assert {pair[1 - side] for pair in pairs} == {"alto", "bass", "solo", "brief"}


def test_who_has_no_enrolment_is_counted(tones):
    source = TargetSpeakerExtraction(tones, seconds=1)
    assert len(source) == 7
    assert {entry.speaker: reason for entry, reason in source.skipped.items()} == {
        "brief": "the only one of brief, and shorter than 3 s: no enrolment",
        "": "no speaker is named: anyone may be the same one",
    }


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (slice(0, 3), r"task tse: 1 named speakers in 3 recordings.*'speaker'"),
        (slice(8, 9), r"task tse: 0 named speakers"),
        (slice(6, 8), r"no recording has an enrolment; .*6\.wav: the only one of solo"),
    ],
)
def test_too_few_speakers_are_refused(tones, chosen, message):
    with pytest.raises(UserError, match=message):
        TargetSpeakerExtraction(tones[chosen], seconds=2)


def test_speakers_whose_other_recordings_are_damaged_are_passed_over(tones, tmp_path):
    damaged = []
    for number in (1, 2, 4):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(b"RIFFjunk" * 40)
        damaged.append(replace(tones[number], path=path))
    mixed = [tones[0], damaged[0], damaged[1], tones[3], damaged[2], tones[5]]
    source = TargetSpeakerExtraction(mixed, seconds=1, config=replace(EXTRACTION, **PLAIN))
    for index in range(len(source)):
        provenance = source[index].provenance
        assert (provenance["file"], provenance["enrolment"]) in {("3", "5"), ("5", "3")}
        assert provenance["interferer"] == "0"
    assert set(source.skipped) == {*damaged, tones[0]}
    with pytest.raises(UserError, match="none of 3 recordings"):
        TargetSpeakerExtraction(mixed[:3] + damaged[2:], seconds=1)[0]


def test_an_interferer_comes_as_often_and_as_loud_as_published(tones):
    config = replace(Degradation(), **PLAIN)
    source = SpeechRestoration(tones, seconds=0.25, length=900, config=config)
    speaker = {entry.id: entry.speaker for entry in tones}
    with_other, named = 0, 0
    for index in range(900):
        example = source[index]
        other = example.provenance["interferer"]
        named += index % 9 != 8
        with_other += bool(other)
        added = example.input - example.target
        assert bool(other) == bool(np.any(added))
        if other:
            assert speaker[other] not in ("", speaker[example.provenance["file"]])
            ratio = 10 * np.log10(np.mean(example.target**2) / np.mean(added**2))
            assert 1.9 < ratio < 20.1  # the target is the louder one
            assert ratio == pytest.approx(example.provenance["plan"]["sir_db"], abs=0.1)
    assert abs(with_other - 0.2 * named) < 4 * np.sqrt(named * 0.2 * 0.8)


def test_one_speaker_alone_is_restored_without_interferers(tones):
    config = Degradation(interference_probability=1, **PLAIN)
    source = SpeechRestoration(tones[:3], seconds=0.5, config=config)
    assert all(np.array_equal(source[i].input, source[i].target) for i in range(3))


def test_rooms_reverberate_as_often_as_published_and_are_named(entries):
    source = SpeechRestoration(entries, seconds=0.5, seed=4, length=300, rooms=ROOMS)
    names = Counter(source[index].provenance["room"] for index in range(300))
    assert set(names) == {"", "room 0", "room 1", "room 2"}
    assert abs(300 - names[""] - 90) < 4 * np.sqrt(300 * 0.3 * 0.7)


def test_recorded_rooms_are_used_and_bad_ones_passed_over(tmp_path, entries):
    echo = np.zeros((8000, 2), np.float32)
    echo[1000, 0], echo[5000, 0], echo[100, 1] = 0.5, 0.25, 1.0  # the second channel is not read
    soundfile.write(tmp_path / "echo.wav", echo, RATE, subtype="FLOAT")
    audio.write(tmp_path / "silent.wav", np.zeros(100), RATE)
    rooms = [Entry(tmp_path / f"{name}.wav", name) for name in ("silent", "missing", "echo")]
    config = Degradation(interference_probability=0, **PLAIN | {"reverberation_probability": 1})
    source = SpeechRestoration(entries, seconds=1, seed=4, rooms=rooms, config=config)
    for index in range(12):
        example = source[index]
        assert example.provenance["room"] == "echo"
        later = np.concatenate((np.zeros(4000), example.target[:-4000]))
        assert np.allclose(example.input, example.target + 0.5 * later, atol=1e-5)
    skipped = {entry.id: why for entry, why in source.skipped.items()}
    assert set(skipped) == {"silent", "missing"}
    assert skipped["silent"] == "silent" and skipped["missing"].startswith("no such file")
    source = SpeechRestoration(entries, seconds=1, rooms=rooms[:2], config=config)
    with pytest.raises(UserError, match="none of 2 room responses"):
        source[0]
    with pytest.raises(UserError, match="no room responses"):
        SpeechRestoration(entries, rooms=())


def test_rooms_and_speech_may_lie_in_a_bucket(bucket, tmp_path, tones, monkeypatch):
    echo = np.array((0, 1, 0, 0.5), np.float32)
    audio.write(tmp_path / "echo.wav", echo, RATE)
    bucket.pipe("gs://b/echo.wav", (tmp_path / "echo.wav").read_bytes())
    rooms = [Entry(epath.Path("gs://b/echo.wav"), "echo")]
    config = Degradation(interference_probability=0, **PLAIN | {"reverberation_probability": 1})
    source = SpeechRestoration(tones, seconds=0.5, rooms=rooms, config=config)
    assert source[0].provenance["room"] == "echo" and not source.skipped

    # Of an only recording, the manifest does not say how long it is.
    far = [
        replace(entry, path=epath.Path(f"gs://b/{entry.id}.wav"), seconds=None) for entry in tones
    ]
    for entry, there in zip(tones, far, strict=True):
        bucket.pipe(str(there.path), entry.path.read_bytes())
    source = TargetSpeakerExtraction(far, seconds=1, config=replace(EXTRACTION, **PLAIN))
    assert len(source) == 7 and {entry.speaker for entry in source.skipped} == {"brief", ""}
    assert source[6].provenance["enrolment"] == "6"
    section = replace(tones[6], seconds=None, rate=RATE, start=1000, frames=2 * RATE)
    source = TargetSpeakerExtraction([*tones[:6], section], seconds=1)
    assert len(source) == 6 and source.skipped[section].startswith("the only one of solo")

    def refused(path, mode):
        raise TimeoutError("no answer")

    enrolled = TargetSpeakerExtraction([tones[0], far[1], tones[3]], seconds=0.5)
    monkeypatch.setattr(bucket, "open", refused)
    for index in range(2):
        with pytest.raises(Unreachable, match=r"gs://b/1\.wav: cannot be fetched"):
            enrolled[index]
    with pytest.raises(Unreachable, match=r"gs://b/6\.wav: cannot be fetched"):
        TargetSpeakerExtraction(far, seconds=1)
    with pytest.raises(Unreachable, match=r"gs://b/echo\.wav: cannot be fetched"):
        SpeechRestoration(tones, seconds=0.5, rooms=rooms, config=config)[0]


@pytest.mark.parametrize("kind", [SpeechRestoration, TargetSpeakerExtraction])
def test_examples_are_pure_and_aligned_at_every_rate(entries, kind):
    source = kind(entries, rate=48_000, seconds=1, seed=2, rooms=ROOMS)
    again = kind(entries, rate=48_000, seconds=1, seed=2, rooms=ROOMS)
    forwards = [source[index] for index in range(6)]
    backwards = [again[index] for index in reversed(range(6))][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one.target.shape == (48_000,) and one.input.shape == (16_000,)
        assert np.array_equal(one.input, two.input) and np.array_equal(one.target, two.target)
        assert (one.reference is None) == (kind is SpeechRestoration)
        if one.reference is not None:
            assert one.reference.shape == (16_000,)
            assert np.array_equal(one.reference, two.reference)
        assert one.provenance == two.provenance and json.dumps(one.provenance)
        peak = max(np.abs(one.target).max(), np.abs(one.input).max())
        assert 0 < peak < 1.05  # input is limited before it is brought to 16 kHz
    assert json.loads(json.dumps(source.describe())) == source.describe()


def test_a_source_travels_to_workers_without_its_audio(entries):
    source = TargetSpeakerExtraction(entries, rate=8000, seconds=1, seed=2, rooms=ROOMS)
    before = [source[index] for index in range(12)]
    packed = pickle.dumps(source)
    assert len(packed) < 100_000
    after = pickle.loads(packed)
    assert all(np.array_equal(after[i].input, before[i].input) for i in range(12))


def test_odd_rates_keep_lengths_aligned(entries):
    source = SpeechRestoration(entries, rate=44_100, seconds=0.333, rooms=ROOMS)
    example = source[0]
    assert example.target.shape == (14_685,) and example.input.shape == (5328,)


def test_a_mixture_draws_its_tasks_uniformly(entries):
    kinds = (SpeechRestoration, TargetSpeakerExtraction, OtherSpeakerExtraction)
    config = replace(EXTRACTION, **PLAIN)
    sources = [kind(entries, seconds=0.25, length=600, config=config) for kind in kinds]
    mixture = TaskMixture(sources, seed=3)
    assert len(mixture) == 600 and mixture.rate == RATE and mixture.seconds == 0.25
    tasks = Counter()
    for index in range(600):
        example = mixture[index]
        tasks[example.task] += 1
        same = next(source for source in sources if source.task == example.task)[index]
        assert np.array_equal(example.input, same.input)
    assert set(tasks) == {"sr", "tse", "rtse"}
    assert all(abs(count - 200) < 4 * np.sqrt(600 * 2 / 9) for count in tasks.values())
    again = TaskMixture(sources, seed=3)
    assert [again[i].task for i in (7, 3, 5)] == [mixture[i].task for i in (7, 3, 5)]
    other = TaskMixture(sources, seed=4)
    assert [other[i].task for i in range(30)] != [mixture[i].task for i in range(30)]
    assert [s["task"] for s in mixture.describe()["sources"]] == ["sr", "tse", "rtse"]


def test_the_choice_of_a_task_tells_nothing_of_the_cut(tones):
    sources = [
        SpeechRestoration(tones[6:7], seconds=0.1, length=200, config=Degradation(0, **PLAIN))
        for _ in range(2)
    ]
    sources[1].task = "other"
    mixture = TaskMixture(sources, (1, 1))
    starts = [
        mixture[index].provenance["start"] for index in range(200) if mixture[index].task == "sr"
    ]
    assert len(starts) > 60 and abs(np.mean(starts) / (3.4 * RATE) - 0.5) < 0.1


def test_a_mixture_follows_its_weights_and_refuses_what_does_not_fit(entries):
    sources = [
        SpeechRestoration(entries, seconds=s, config=Degradation(0, **PLAIN)) for s in (1, 1, 2)
    ]
    mixture = TaskMixture(sources[:2], (1, 0), length=30)
    assert all(mixture[index].task == "sr" for index in range(30))
    with pytest.raises(UserError, match="one rate and length"):
        TaskMixture(sources)
    with pytest.raises(UserError, match="weights"):
        TaskMixture(sources[:2], (1,))
    with pytest.raises(IndexError):
        mixture[30]


def test_cuts_of_an_enrolled_speaker_are_at_the_published_levels(entries):
    source = TargetSpeakerExtraction(
        entries, seconds=0.5, length=200, config=replace(EXTRACTION, **PLAIN)
    )
    ratios, peaks = [], []
    for index in range(200):
        example = source[index]
        added = example.input - example.target
        powers = [simulation.active_power(wave, RATE) for wave in (example.target, added)]
        ratios.append(10 * np.log10(powers[0] / powers[1]))
        peaks.append(np.abs(example.reference).max())
        assert ratios[-1] == pytest.approx(example.provenance["plan"]["sir_db"], abs=0.1)
    assert -5.1 < min(ratios) < -4.5 and 4.5 < max(ratios) < 5.1
    assert 0.09 < min(peaks) < 0.2 and 0.9 < max(peaks) < 1

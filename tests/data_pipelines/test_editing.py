"""Words are inserted, deleted and substituted by splices that do not click. Where it has to be
known what is said, the words are tones: each has its own pitch."""

import json
import logging
import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from data_pipelines import Entry
from data_pipelines.alignments import ForcedAligner, Word
from data_pipelines.cuts import Cutter
from data_pipelines.examples import SpeechEditing, SpeechEdits, editing
from data_pipelines.examples.splicing import Piece, find_joints, join
from data_pipelines.simulation import active_power
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000
PITCHES = {f"word{number}": 300 + 450 * number for number in range(12)}
SENTENCES = (
    ("ada", "word0 word1 word2 word3"),
    ("ada", "word4 word5 word6"),
    ("ada", "word1 word7 word1"),
    ("bob", "word8 word9 word10"),
    ("bob", "word11"),
)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> tuple[list[Entry], dict[str, list[Word]]]:
    """Sentences of tones of 0.2 s, with 0.1 s between them; and their alignments."""
    folder = tmp_path_factory.mktemp("tones")
    entries, alignments = [], {}
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(RATE * 4)
    for number, (speaker, text) in enumerate(SENTENCES):
        wave, words, name = np.zeros(1600), [], f"{speaker}{number}"
        for word in text.split():
            words.append(Word(word, len(wave) / RATE, len(wave) / RATE + 0.2))
            tone = 0.4 * np.sin(2 * np.pi * PITCHES[word] * np.arange(3200) / RATE)
            wave = np.concatenate((wave, tone * np.hanning(3200) ** 0.25, np.zeros(1600)))
        audio.write(folder / f"{name}.wav", (wave + hiss[: len(wave)]).astype(np.float32), RATE)
        entries.append(Entry(folder / f"{name}.wav", name, speaker=speaker))
        alignments[name] = words
    return entries, alignments


@pytest.fixture(scope="module")
def speech(entries) -> tuple[list[Entry], dict[str, list[Word]]]:
    english = [entry for entry in entries if entry.language == "en"]
    aligner = ForcedAligner()
    return english, {entry.id: aligner(entry.read(RATE), entry.text) for entry in english}


def said(wave: np.ndarray) -> list[str]:
    """The words in a wave of tones, by the pitch of each 0.1 s that is loud."""
    found = []
    for block in wave[: len(wave) // 800 * 800].reshape(-1, 800):
        if np.sqrt(np.mean(block**2)) > 0.25 * np.max(np.abs(wave)):
            pitch = np.argmax(np.abs(np.fft.rfft(block * np.hanning(800), 16_000)))
            found.append(min(PITCHES, key=lambda word: abs(PITCHES[word] - pitch)))
        else:
            found.append("")
    return [
        word for word, before in zip(found, ["", *found], strict=False) if word and word != before
    ]


def many(corpus, operation: str, count: int = 24, seconds: float = 4.0, **changes):
    config = SpeechEdits(operations=(operation,), **changes)
    source = SpeechEditing(*corpus, seconds=seconds, seed=4, length=count, config=config)
    return [source[index] for index in range(count)]


@pytest.mark.parametrize("operation", ["insert", "delete", "substitute"])
def test_what_is_said_is_what_the_provenance_tells(tones, operation):
    entries, alignments = tones
    speakers = {entry.id: entry.speaker for entry in entries}
    for example in many(tones, operation):
        made = example.provenance
        assert said(example.input) == made["input_words"].split()
        assert said(example.target) == made["target_words"].split()
        words = [word.text for word in alignments[made["file"]]]
        assert made[f"{made['original']}_words"].split() == words
        if made["other"]:
            assert speakers[made["other"]] == speakers[made["file"]]


@pytest.mark.parametrize("operation", ["insert", "delete", "substitute"])
def test_the_original_is_the_recording_as_it_is(tones, operation):
    entries = {entry.id: entry for entry in tones[0]}
    originals = Counter()
    for example in many(tones, operation):
        original = getattr(example, example.provenance["original"])
        wave = entries[example.provenance["file"]].read(RATE)
        assert np.allclose(original / np.abs(original).max(), wave / np.abs(wave).max(), atol=1e-6)
        originals[example.provenance["original"]] += 1
    assert originals["target"] == 24 if operation != "delete" else 5 < originals["target"] < 19


def test_only_the_words_that_are_named_change(tones):
    for example in many(tones, "insert", words=(1, 1)):
        before, after = (example.provenance[f"{name}_words"] for name in ("input", "target"))
        [word] = list((Counter(after.split()) - Counter(before.split())).elements())
        assert word in example.caption.lower()
        assert len(example.target) - len(example.input) == pytest.approx(4800, abs=1600)
    for example in many(tones, "delete"):
        before, after = (example.provenance[f"{name}_words"] for name in ("input", "target"))
        long, short = before.split(), after.split()
        size = len(long) - len(short)
        places = [n for n in range(len(short) + 1) if long[:n] + long[n + size :] == short]
        runs = [long[place : place + size] for place in places]
        [gone] = [run for run in runs if " ".join(run) in example.caption.lower()]
        assert before.count(" ".join(gone)) == 1
        same = np.flatnonzero(example.input[: len(example.target)] != example.target)[0]
        assert same > 500 or before.startswith(gone[0])
    for example in many(tones, "substitute", words=(1, 1)):
        before = example.provenance["input_words"].split()
        after = example.provenance["target_words"].split()
        [place] = [n for n in range(len(after)) if before[n] != after[n]]
        assert before.count(before[place]) == 1
        text = example.caption.lower()
        assert before[place] in text and after[place] in text


def test_where_a_word_goes_is_told_without_doubt(tones):
    for example in many(tones, "insert", 60, words=(1, 1)):
        before = example.provenance["input_words"].split()
        after = example.provenance["target_words"].split()
        text = example.caption.lower().replace('"', "").replace("the word ", "").rstrip(".?")
        text = text.replace("; add it", "").replace("; record that", "")
        text = text.replace(" in the same voice", "").replace(" is heard", "")
        if "at the beginning" in text:
            assert after[1:] == before
        elif "at the end" in text:
            assert after[:-1] == before
        else:
            side = "after" if " after " in text else "before"
            anchor = text.split(f" {side} ")[1].split()[0]
            assert before.count(anchor) == 1
            place = before.index(anchor) + (side == "after")
            assert [*before[:place], after[place], *before[place:]] == after


def test_long_recordings_are_cut_between_words(speech):
    entries, alignments = speech
    found = 0
    for index, example in enumerate(many(speech, "delete", 40, seconds=2.4)):
        assert max(len(example.input), len(example.target)) <= 2.4 * RATE
        made = example.provenance
        entry = next(entry for entry in entries if entry.id == made["file"])
        words = [word.text for word in alignments[entry.id]]
        part = made[f"{made['original']}_words"].split()
        assert " ".join(part) in " ".join(words) and len(part) > 1
        original = getattr(example, made["original"])
        wave = entry.read(RATE)[made["start"] :][: len(original)]
        heard = original[100:-100] / np.abs(original).max()
        assert np.allclose(heard, wave[100:-100] / np.abs(wave).max(), atol=1e-3), index
        found += len(part) < len(words)
    assert found > 10


def test_joints_lie_where_it_is_quiet_between_the_words(tones):
    entries, alignments = tones
    wave = entries[0].read(RATE)
    words = alignments["ada0"]
    late = [replace(word, start=word.start + 0.03, end=word.end + 0.03) for word in words]
    joints = find_joints(wave, late, RATE)
    for place, (first, second) in zip(joints.places[1:-1], pairwise(words), strict=True):
        assert first.end < place / RATE < second.start
    assert (joints.depth_db > 50).all()
    # Words that run into each other have a joint, but not a quiet one.
    joined = [Word("a", 0.1, 0.2), Word("b", 0.2, 0.3)]
    assert find_joints(wave, joined, RATE).depth_db[1] < 3


def test_pieces_are_joined_to_the_sample_and_fade_into_each_other():
    ones, twos = np.ones(1000, np.float32), np.full(1000, 2, np.float32)
    joined = join([Piece(ones, 100, 400), Piece(twos, 300, 350, gain=2.0)], RATE)
    assert joined.shape == (350,) and joined.dtype == np.float32
    assert (joined[:220] == 1).all() and (joined[-(50 - 80) :] >= 1).all()
    assert joined[300] == pytest.approx(2.5, abs=0.05)
    assert (np.diff(joined) >= 0).all() and joined[-1] > 3.5
    # Of one wave, cut and joined at one place, nothing changes.
    noise = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    back = join([Piece(noise, 0, 1500), Piece(noise, 1500, 4000)], RATE)
    assert np.allclose(back, noise, atol=1e-6)
    # Beyond the end of a wave there is silence.
    assert join([Piece(ones, 0, 1000), Piece(ones, 0, 1000)], RATE)[1000] == pytest.approx(
        0.5, abs=0.02
    )


def test_splices_do_not_click(speech):
    """From one sample to the next, spliced speech moves no further than natural speech does; and
    where it is spliced, less than a quarter of that."""
    entries = {entry.id: entry for entry in speech[0]}
    checked = 0
    for operation in ("insert", "delete", "substitute"):
        for example in many(speech, operation, 20, seconds=8):
            made = example.provenance
            original = getattr(example, made["original"])
            spliced = example.input if made["original"] == "target" else example.target
            wave = entries[made["file"]].read(RATE)
            natural = np.abs(np.diff(wave)).max()
            if made["other"]:
                other = entries[made["other"]].read(RATE)
                gain = np.sqrt(active_power(wave, RATE) / active_power(other, RATE))
                natural = max(natural, gain * np.abs(np.diff(other)).max())
            natural *= np.abs(original).max() / np.abs(wave).max()
            assert np.abs(np.diff(spliced)).max() <= 1.001 * natural
            size = min(len(original), len(spliced))
            first = np.flatnonzero(original[:size] != spliced[:size])
            last = np.flatnonzero(original[::-1][:size] != spliced[::-1][:size])
            for place in (first[0] + 80, len(spliced) - last[0] - 80):
                around = spliced[max(place - 80, 0) : place + 80]
                assert np.abs(np.diff(around)).max() < 0.25 * natural
                checked += 1
    assert checked == 120


def test_other_rates_are_spliced_at_them(speech):
    [example] = many(speech, "insert", 1)
    source = SpeechEditing(
        *speech,
        rate=24_000,
        seconds=4,
        seed=4,
        length=1,
        config=SpeechEdits(operations=("insert",)),
    )
    assert source[0].rate == 24_000
    assert len(source[0].target) == pytest.approx(1.5 * len(example.target), abs=2)
    assert source[0].provenance["target_words"] == example.provenance["target_words"]


def test_an_example_depends_on_seed_and_index_alone(speech):
    def made(example):
        return example.input.tobytes(), example.target.tobytes(), example.caption

    source = SpeechEditing(*speech, seconds=3, seed=7, length=12)
    forwards = [made(source[index]) for index in range(12)]
    again = pickle.loads(pickle.dumps(SpeechEditing(*speech, seconds=3, seed=7, length=12)))
    assert forwards == [made(again[index]) for index in reversed(range(12))][::-1]
    other = SpeechEditing(*speech, seconds=3, seed=8, length=12)
    assert all(forwards[index] != made(other[index]) for index in range(12))
    assert json.loads(json.dumps(source.describe())) == again.describe() != other.describe()
    shifted = {
        name: [replace(word, end=word.end + 0.01) for word in words]
        for name, words in speech[1].items()
    }
    moved = SpeechEditing(speech[0], shifted, seconds=3, seed=7, length=12)
    assert moved.describe() != source.describe()
    with pytest.raises(IndexError):
        source[12]


def test_words_are_not_taken_from_other_speakers_or_unknown_ones(tones):
    entries, alignments = tones
    alone = [replace(entry, speaker="") for entry in entries]
    with pytest.raises(UserError, match=r"no recording is fit for substitute: .*name the speakers"):
        many((alone, alignments), "substitute", 1)
    assert many((alone, alignments), "insert", 1)


def test_operations_are_of_recordings_that_are_fit_for_them(tones, caplog):
    entries, alignments = tones
    alone = [replace(entry, speaker="") for entry in entries]
    with caplog.at_level(logging.WARNING):
        source = SpeechEditing(alone, alignments, seconds=4, seed=4, length=60)
    assert "no recording is fit for substitute" in caplog.text
    made = [source[index].provenance for index in range(60)]
    assert Counter(each["operation"] for each in made).keys() == {"insert", "delete"}
    assert not any(each["other"] for each in made)
    # Bob has only one recording here, which is short.
    some = [entries[3], replace(entries[4], speaker="eve"), *entries[:3]]
    for example in many((some, alignments), "substitute"):
        assert example.provenance["file"] != "bob3"
    # Words of a long recording may go into another part of it.
    for example in many((alone[:1], alignments), "substitute", 6, seconds=1.0, words=(1, 1)):
        assert example.provenance["file"] == example.provenance["other"] == "ada0"


def test_an_example_decodes_no_more_than_it_may(tones, monkeypatch):
    entries, alignments = tones
    read = []
    monkeypatch.setattr(editing, "_TRIES", 3)
    monkeypatch.setattr(Cutter, "read", lambda self, entry: read.append(entry))
    many_more = [replace(entries[0], id=str(number)) for number in range(50)]
    words = {entry.id: alignments["ada0"] for entry in many_more}
    for operation in ("insert", "delete"):
        read.clear()
        with pytest.raises(UserError, match=rf"none of 3 recordings can be edited \({operation}\)"):
            many((many_more, words), operation, 1)
        assert len(read) == 3


def test_what_cannot_be_made_is_told(tones):
    entries, alignments = tones
    with pytest.raises(UserError, match="two or more aligned words"):
        SpeechEditing(entries[-1:], alignments)
    with pytest.raises(UserError, match="'shout' is unknown"):
        SpeechEditing(entries, alignments, config=SpeechEdits(operations=("shout",)))
    with pytest.raises(UserError, match="90 dB apart"):
        SpeechEditing(entries, alignments, config=SpeechEdits(quiet_db=90))[0]

"""Word alignments are read from CTM and TextGrid, written as CTM, and computed where words are."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pocketsphinx
import pytest

from data_pipelines import Entry, alignments, write_manifest
from data_pipelines.alignments import (
    AlignmentError,
    ForcedAligner,
    Word,
    align,
    read_alignments,
    read_ctm,
    read_textgrids,
    spoken_words,
    write_ctm,
)
from data_pipelines.simulation import active
from quark_jax import audio
from quark_jax.errors import UserError

TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
2
"IntervalTier"
"ada - words"
0
1.5
4
0
0.25
""
0.25
0.6
"don't"
0.6
1.0
"sp"
1.0
1.5
"stop"
"IntervalTier"
"ada - phones"
0
1.5
1
0
1.5
"x"
"""


@pytest.fixture(scope="module")
def aligner() -> ForcedAligner:
    return ForcedAligner()


@pytest.fixture(scope="module")
def english(entries) -> list[Entry]:
    return [entry for entry in entries if entry.language == "en"]


def test_a_ctm_is_read_whatever_its_comments_channels_and_confidences(tmp_path):
    (tmp_path / "a.ctm").write_text(
        ";; made by hand\n\none A 0.50 0.25 World 0.98\none A 0.10 0.30 Hello\n"
        "one A 0.40 0.10 <eps>\ntwo 1 1.5 0 again 1\n"
    )
    assert read_ctm(tmp_path / "a.ctm") == {
        "one": [Word("Hello", 0.1, 0.4), Word("World", 0.5, 0.75)],
        "two": [Word("again", 1.5, 1.5)],
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("one A 0.5 0.25", "4 fields"),
        ("one A x 0.25 word", "give seconds"),
        ("one A -1 0.25 word", "0 or more"),
        ("one A 0 nan word", "0 or more"),
        ("one B 0.5 0.25 word", "on channels A and B"),
    ],
)
def test_a_malformed_line_of_a_ctm_is_named(tmp_path, line, reason):
    (tmp_path / "bad.ctm").write_text(f"one A 0 0.2 fine\n{line}\n")
    with pytest.raises(UserError, match=rf"bad\.ctm:2: .*{reason}"):
        read_ctm(tmp_path / "bad.ctm")


def test_what_is_written_is_read_back(tmp_path):
    words = {"a/b": [Word("don't", 0.1, 0.35), Word("7", 0.35, 0.5)], "c": [Word("é", 2.0, 2.125)]}
    write_ctm(words, tmp_path / "out.ctm")
    back = read_ctm(tmp_path / "out.ctm")
    assert back.keys() == words.keys()
    for name, said in words.items():
        assert [word.text for word in back[name]] == [word.text for word in said]
        times = [(word.start, word.end) for word in said]
        assert np.allclose([(word.start, word.end) for word in back[name]], times, atol=1e-9)
    with pytest.raises(UserError, match="space"):
        write_ctm({"a b": [Word("x", 0, 1)]}, tmp_path / "out.ctm")
    assert read_ctm(tmp_path / "out.ctm") == back  # the older file is left
    assert [path.name for path in tmp_path.iterdir()] == ["out.ctm"]


def test_textgrids_are_read_by_their_path(tmp_path, entries):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "x.TextGrid").write_text(TEXTGRID)
    said = [Word("don't", 0.25, 0.6), Word("stop", 1.0, 1.5)]
    assert read_textgrids(tmp_path) == {"ada/x": said}
    recordings = [replace(entries[0], id="ada/x.flac"), replace(entries[1], id="ada/y.flac")]
    assert read_alignments(tmp_path, recordings) == {"ada/x.flac": said}
    with pytest.raises(UserError, match="aligns no recording"):
        read_alignments(tmp_path, recordings[1:])
    with pytest.raises(UserError, match="one interval tier 'syllables'"):
        read_textgrids(tmp_path, tier="syllables")
    (tmp_path / "ada" / "x.TextGrid").write_text("nothing of the kind")
    with pytest.raises(UserError, match="not a TextGrid"):
        read_textgrids(tmp_path)


def test_words_are_those_of_the_text_without_its_punctuation():
    text = "“Don’t re-enter it!” (he said) ... 6, please."
    assert spoken_words(text) == ["don't", "re-enter", "it", "he", "said", "6", "please"]


def test_words_are_found_where_there_is_speech(aligner, english):
    """Against the first and last 20 ms that are no more than 40 dB below the loudest."""
    errors = []
    for entry in english:
        wave = entry.read(16_000)
        words = aligner(wave, entry.text)
        assert [word.text for word in words] == spoken_words(entry.text)
        edges = [edge for word in words for edge in (word.start, word.end)]
        assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(wave) / 16_000
        sound = np.flatnonzero(active(wave, 16_000)) / 16_000
        errors += [words[0].start - sound[0], words[-1].end - sound[-1]]
    assert len(errors) == 24
    assert np.max(np.abs(errors)) < 0.16 and np.mean(np.abs(errors)) < 0.08


def test_word_boundaries_are_those_of_words_put_together(aligner, english):
    """Recordings with pauses of known length between them: each word lies in its own."""
    rng = np.random.default_rng(0)
    for first, second in ((0, 4), (9, 7), (2, 8)):
        waves = [english[number].read(16_000) for number in (first, second)]
        texts = [english[number].text for number in (first, second)]
        pause = np.zeros(int(rng.integers(4000, 16_000)), np.float32)
        words = aligner(np.concatenate((waves[0], pause, waves[1])), " ".join(texts))
        count = len(spoken_words(texts[0]))
        assert words[count - 1].end < len(waves[0]) / 16_000 + 0.05
        assert words[count].start > (len(waves[0]) + len(pause)) / 16_000 - 0.05


def test_numbers_and_hyphens_are_spoken(aligner, english):
    entry = next(entry for entry in english if "re-entered" in entry.text)
    assert "re-entered" in [word.text for word in aligner(entry.read(16_000), entry.text)]
    # What is said does not matter here, only that each token is one word.
    words = aligner(entry.read(16_000), "The passwords 21 2nd")
    assert [word.text for word in words] == ["the", "passwords", "21", "2nd"]


def test_a_word_without_pronunciation_is_named(aligner, english):
    with pytest.raises(AlignmentError, match="'qwrtz' is not in the pronouncing dictionary"):
        aligner(english[0].read(16_000), "Agent qwrtz.")
    with pytest.raises(AlignmentError, match="no words"):
        aligner(english[0].read(16_000), "...")


def test_an_alignment_does_not_depend_on_those_before_it(aligner, english):
    forwards = [aligner(entry.read(16_000), entry.text) for entry in english[:4]]
    backwards = [aligner(entry.read(16_000), entry.text) for entry in reversed(english[:4])]
    assert forwards == backwards[::-1]


def test_other_models_are_used_or_refused(tmp_path, aligner, english):
    folder = Path(pocketsphinx.get_model_path()) / "en-us"
    given = ForcedAligner(folder / "en-us", folder / "cmudict-en-us.dict")
    wave = english[0].read(16_000)
    assert given(wave, english[0].text) == aligner(wave, english[0].text)
    with pytest.raises(UserError, match="PocketSphinx cannot load"):
        ForcedAligner(tmp_path, tmp_path / "none.dict")
    with pytest.raises(UserError, match="go together"):
        ForcedAligner(folder)


def test_an_interrupted_run_is_finished_and_a_longer_manifest_added_to(
    tmp_path, english, entries, monkeypatch
):
    out, partial = tmp_path / "out.ctm", tmp_path / "out.ctm.partial"
    audio.write(tmp_path / "odd.wav", np.zeros(1600, np.float32), 16_000)
    odd = Entry(tmp_path / "odd.wav", "odd", text="qwrtz", language="en")
    left_out = align([*english[:3], odd, entries[-1]], out, workers=1, progress=False)
    reasons = {entry.id: reason for entry, reason in left_out}
    assert "qwrtz" in reasons["odd"] and "language is ru" in reasons[entries[-1].id]
    first = read_ctm(out)
    assert list(first) == [entry.id for entry in english[:3]] and not partial.exists()

    # As if stopped while writing the last of two: the whole one is kept, the other done again.
    lines = out.read_text().splitlines(keepends=True)
    names = [entry.id for entry in english[:2]]
    kept, begun = ([line for line in lines if line.startswith(name)] for name in names)
    partial.write_text("".join(kept) + f";; aligned {names[0]}\n" + begun[0])
    out.unlink()
    asked = []
    align_entry = alignments._align_entry

    def noted(entry, **model):
        asked.append(entry.id)
        return align_entry(entry, **model)

    monkeypatch.setattr(alignments, "_align_entry", noted)
    align(english[:4], out, workers=1, progress=False)
    assert asked == [entry.id for entry in english[1:4]]
    assert {name: read_ctm(out)[name] for name in first} == first and not partial.exists()


def test_words_that_were_taken_in_are_not_taken_twice(tmp_path, english):
    """As if stopped just before the file of what an interrupted run did is removed."""
    out, partial = tmp_path / "out.ctm", tmp_path / "out.ctm.partial"
    mine = ";; mine\nother 1 0.1 0.2 word 0.75\n"
    first, second = (entry.id for entry in english[:2])
    out.write_text(f"{mine}{first} 1 0.1 0.2 one")
    partial.write_text(f"{first} 1 0.1 0.2 one\n;; aligned {first}\n")
    partial.write_text(f"{partial.read_text()}{second} 1 0.1 0.2 two\n;; aligned {second}\n")
    assert align(english[:2], out, progress=False) == []
    lines = f"{first} 1 0.1 0.2 one\n{second} 1 0.1 0.2 two\n"
    assert out.read_text() == mine + lines and not partial.exists()


def test_processes_align_the_same(tmp_path, english):
    for workers in (1, 2):
        align(english[:3], tmp_path / f"{workers}.ctm", workers=workers, progress=False)
    assert (tmp_path / "1.ctm").read_text() == (tmp_path / "2.ctm").read_text()


def test_no_workers_are_refused(tmp_path, english):
    with pytest.raises(UserError, match="workers: 0; give at least 1"):
        align(english[:1], tmp_path / "out.ctm", workers=0, progress=False)


def test_the_command_tells_what_it_did(tmp_path, english, capsys, monkeypatch):
    manifest = tmp_path / "m.jsonl"
    named = [replace(english[0], id="one"), replace(english[1], id="two words")]
    write_manifest(named, manifest)
    out = tmp_path / "out.ctm"
    monkeypatch.setattr(sys, "argv", ["alignments", str(manifest), str(out), "--workers", "1"])
    assert alignments._main() == 0
    told = capsys.readouterr()
    assert "1 recordings aligned; 1 left out" in told.out
    assert re.search(r"left out two words: its id has a space", told.err)
    monkeypatch.setattr(sys, "argv", ["alignments", str(tmp_path / "none.jsonl"), str(out)])
    assert alignments._main() == 2
    assert "none.jsonl" in capsys.readouterr().err

"""Manifests: what is read is what was written; what is wrong is named with file and line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from data_pipelines import Entry, manifests, read_manifest, samples_manifest, scan, write_manifest
from quark_jax import audio
from quark_jax.errors import UserError


@pytest.fixture
def corpus(tmp_path, entries):
    """Two recordings, one in a subfolder at another rate, and four files that cannot be used."""
    (tmp_path / "deep").mkdir()
    wave = entries[0].read(16_000)
    audio.write(tmp_path / "a.flac", wave, 16_000)
    audio.write(tmp_path / "deep/b.wav", entries[1].read(44_100), 44_100)
    audio.write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 16_000)
    (tmp_path / "junk.mp3").write_bytes(b"not audio at all" * 50)
    (tmp_path / "empty.wav").write_bytes(b"")
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("no audio, passed over")
    return tmp_path


def test_scan_lists_what_can_be_used_and_why_the_rest_cannot(corpus):
    result = scan(corpus, language="en", licence="CC0-1.0", split="heldout", progress=False)
    assert [entry.id for entry in result.entries] == ["a.flac", "deep/b.wav"]
    first, second = result.entries
    assert (first.rate, second.rate, first.channels) == (16_000, 44_100, 1)
    assert abs(first.seconds - soundfile.info(corpus / "a.flac").duration) < 1e-3
    assert (first.language, first.licence, first.split) == ("en", "CC0-1.0", "heldout")
    reasons = {path.name: reason for path, reason in result.rejected}
    assert set(reasons) == {"silent.wav", "junk.mp3", "empty.wav", "cut.flac"}
    assert reasons["silent.wav"] == "silent"
    assert "empty" in reasons["empty.wav"] and str(corpus) not in reasons["junk.mp3"]


def test_a_manifest_reads_back_as_it_was_written(corpus):
    found = scan(corpus, language="en", progress=False).entries
    section = Entry(corpus / "a.flac", "s", rate=16_000, start=100, frames=50, text="zwölf")
    sound = Entry(corpus / "a.flac", "c", captions=("a dog barks", "ein Hund bellt"))
    write_manifest([*found, section, sound], corpus / "m.jsonl")
    assert read_manifest(corpus / "m.jsonl") == [*found, section, sound]
    lines = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    assert [line.get("captions") for line in lines[2:]] == [None, ["a dog barks", "ein Hund bellt"]]
    assert json.loads((corpus / "m.jsonl").read_text().splitlines()[1])["path"] == "deep/b.wav"


def test_paths_outside_the_manifests_folder_are_written_absolute(corpus, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists") / "m.jsonl"
    found = scan(corpus, progress=False).entries
    write_manifest(found, elsewhere)
    assert read_manifest(elsewhere) == found


def test_a_failed_write_leaves_the_old_manifest(corpus):
    target = corpus / "m.jsonl"
    write_manifest([Entry(corpus / "a.flac", "a")], target)
    before = target.read_bytes()

    def breaks():
        yield Entry(corpus / "a.flac", "b")
        raise RuntimeError("the lister broke")

    with pytest.raises(RuntimeError):
        write_manifest(breaks(), target)
    assert target.read_bytes() == before
    assert not list(corpus.glob(".*partial"))


def test_the_three_scp_forms(corpus):
    lines = ("u1 a.flac", "", "u2 june deep/b.wav", f"u3 16000 800 1600 {corpus}/a.flac")
    (corpus / "x.scp").write_text("\n".join(lines))
    plain, speaker, section = read_manifest(corpus / "x.scp")
    assert (plain.id, plain.path) == ("u1", corpus / "a.flac")
    assert (speaker.id, speaker.speaker, speaker.path) == ("u2", "june", corpus / "deep/b.wav")
    assert (section.start, section.frames, section.seconds) == (800, 1600, 0.1)
    whole = plain.read(16_000)
    assert np.array_equal(section.read(16_000), whole[800:2400])
    assert len(section.read(8_000)) == 800


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"path": "a.flac"', "not JSON"),
        ('{"text": "no path"}', "'path' is missing"),
        ('{"path": "a.flac", "lanuage": "en"}', "unknown field 'lanuage'"),
        ('{"path": "a.flac", "rate": "16000"}', "field 'rate' is '16000'"),
        ('{"path": "a.flac", "seconds": -1}', "field 'seconds' is -1"),
        ('{"path": "a.flac", "seconds": NaN}', "field 'seconds' is nan"),
        ('{"path": "a.flac", "captions": "a dog"}', "field 'captions' is 'a dog'"),
        ('{"path": "a.flac", "captions": ["a dog", " "]}', "none of them empty"),
        ('{"path": "a.flac", "captions": [3]}', "list of texts"),
        ('{"path": "../up.flac"}', "'../up.flac' leaves"),
        ("u1 x/../../up.flac", "leaves"),
        ("alone", "1 fields"),
        ("utt with spaces in its path.flac", "6 fields"),
        ("u1 16k 0 100 a.flac", "whole numbers"),
        ("u1 16000 -5 100 a.flac", "field 'start' is -5"),
        ("u1 16000 0 0 a.flac", "field 'frames' is 0"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "m.list"
    path.write_text(f"u0 fine.flac\n\n{line}\n")
    with pytest.raises(UserError, match=f"^{path}:3: ") as error:
        read_manifest(path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_root_binds_absolute_paths_too(tmp_path):
    (tmp_path / "m.scp").write_text("u1 /elsewhere/a.flac")
    assert str(read_manifest(tmp_path / "m.scp")[0].path) == "/elsewhere/a.flac"
    with pytest.raises(UserError, match="leaves"):
        read_manifest(tmp_path / "m.scp", root=tmp_path)
    (tmp_path / "m.scp").write_text("u1 sub/a.flac")
    assert read_manifest(tmp_path / "m.scp", root="/data")[0].path.as_posix() == "/data/sub/a.flac"


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe\x00bad"])
def test_an_unusable_manifest_is_named(tmp_path, content):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=str(path)):
        read_manifest(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rate": 8000, "start": 0, "frames": 10}, "16000 Hz, but"),
        ({"start": 10**9}, "are not in its"),
        ({"start": 10, "frames": 10**9}, "are not in its"),
    ],
)
def test_a_section_that_is_not_there_is_named(corpus, changes, says):
    with pytest.raises(UserError, match=says):
        Entry(corpus / "a.flac", "a", **changes).read(16_000)


def test_the_samples_are_as_their_manifest_says(entries):
    assert samples_manifest().is_file()
    assert {entry.split for entry in entries} == {"train", "heldout"}
    for entry in entries:
        assert abs(audio.info(entry.path).seconds - entry.seconds) < 1e-3
        assert entry.text and entry.speaker and entry.licence


def run_command(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_pipelines.manifests", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_writes_a_manifest_and_names_what_it_left_out(corpus):
    done = run_command(corpus, corpus / "m.jsonl", "--language", "en")
    assert done.returncode == 0, done.stderr
    assert "2 recordings" in done.stdout and "4 left out" in done.stdout
    assert "silent.wav: silent" in done.stderr
    assert [entry.language for entry in read_manifest(corpus / "m.jsonl")] == ["en", "en"]


def test_the_command_refuses_a_folder_without_audio(tmp_path):
    done = run_command(tmp_path, tmp_path / "m.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith(f"quark: {tmp_path}: no audio files")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "m.jsonl").exists()


def test_audio_suffixes_cover_what_can_be_written():
    from quark_jax.audio.io import FORMATS

    assert set(FORMATS) <= manifests.AUDIO_SUFFIXES

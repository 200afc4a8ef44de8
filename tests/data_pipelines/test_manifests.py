"""Manifests: what is read is what was written; what is wrong is named with file and line."""

import json

import numpy as np
import pytest
from etils import epath

from data_pipelines import Entry, manifests, read_manifest, samples_manifest, write_manifest
from data_pipelines.manifests import iterate_manifest
from quark_jax import audio
from quark_jax.errors import UserError


@pytest.fixture
def corpus(tmp_path, entries):
    """Two recordings, one in a subfolder at another rate."""
    (tmp_path / "deep").mkdir()
    audio.write(tmp_path / "a.flac", entries[0].read(16_000), 16_000)
    audio.write(tmp_path / "deep/b.wav", entries[1].read(44_100), 44_100)
    return tmp_path


def listed(corpus) -> list[Entry]:
    return [
        Entry(corpus / "a.flac", "a", 4.9, 16_000, 1, language="en", licence="CC0-1.0"),
        Entry(corpus / "deep/b.wav", "b", rate=44_100, split="heldout", domain="speech"),
    ]


def test_a_manifest_reads_back_as_it_was_written(corpus):
    found = listed(corpus)
    section = Entry(corpus / "a.flac", "s", rate=16_000, start=100, frames=50, text="zwölf")
    sound = Entry(corpus / "a.flac", "c", captions=("a dog barks", "ein Hund bellt"))
    write_manifest([*found, section, sound], corpus / "m.jsonl")
    assert read_manifest(corpus / "m.jsonl") == [*found, section, sound]
    lines = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    assert [line.get("captions") for line in lines[2:]] == [None, ["a dog barks", "ein Hund bellt"]]
    assert json.loads((corpus / "m.jsonl").read_text().splitlines()[1])["path"] == "deep/b.wav"


def test_paths_outside_the_manifests_folder_are_written_absolute(corpus, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists") / "m.jsonl"
    found = listed(corpus)
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
    assert not list(corpus.glob(".*partial*"))


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


def test_audio_suffixes_cover_what_can_be_written():
    from quark_jax.audio.io import FORMATS

    assert set(FORMATS) <= manifests.AUDIO_SUFFIXES


def test_manifests_and_audio_may_lie_in_a_bucket(bucket, corpus):
    bucket.pipe("gs://b/set/a.flac", (corpus / "a.flac").read_bytes())
    entry = Entry(epath.Path("gs://b/set/a.flac"), "a", rate=16_000, captions=("hello",))
    write_manifest([entry], "gs://b/set/m.jsonl")
    assert json.loads(bucket.cat("gs://b/set/m.jsonl"))["path"] == "a.flac"
    write_manifest([entry], corpus / "m.jsonl")
    assert json.loads((corpus / "m.jsonl").read_text())["path"] == "gs://b/set/a.flac"
    here = Entry(corpus / "a.flac", "a").read(16_000)
    for manifest in ("gs://b/set/m.jsonl", corpus / "m.jsonl"):
        (found,) = read_manifest(manifest)
        assert found == entry
        assert np.array_equal(found.read(16_000), here)
        assert np.array_equal(found.read(16_000, start=500, samples=700), here[500:1200])
        assert len(found.read(8_000)) == (len(here) + 1) // 2 and found.length(16_000) is None


def test_what_is_wrong_in_a_bucket_names_the_file_there(bucket, monkeypatch):
    bucket.pipe("gs://b/junk.wav", b"not audio at all")
    with pytest.raises(UserError, match=r"^gs://b/junk.wav: cannot be read as audio"):
        Entry(epath.Path("gs://b/junk.wav"), "a").read(16_000)
    with pytest.raises(UserError, match=r"^gs://b/none.wav: no such file"):
        Entry(epath.Path("gs://b/none.wav"), "a").read(16_000)
    bucket.pipe("gs://b/m.jsonl", b'{"path": "../c/a.wav"}')
    with pytest.raises(UserError, match=r"^gs://b/m.jsonl:1: path '../c/a.wav' leaves gs://b/"):
        read_manifest("gs://b/m.jsonl")

    def refused(path):
        raise RuntimeError("401 anonymous caller")

    monkeypatch.setattr(bucket, "open", lambda path, mode: refused(path))
    with pytest.raises(UserError, match=r"junk.wav: cannot be fetched \(401 .*gcsfs"):
        Entry(epath.Path("gs://b/junk.wav"), "a").read(16_000)


def test_an_id_that_two_recordings_have_is_refused(corpus):
    for name, path in (("m", "a.flac"), ("n", "deep/b.wav")):
        write_manifest([Entry(corpus / path, "a")], corpus / f"{name}.jsonl")
    both = "".join((corpus / f"{name}.jsonl").read_text() for name in "mn")
    (corpus / "both.jsonl").write_text(both)
    says = rf"id 'a' is that of {corpus}/a.flac and of {corpus}/deep/b.wav; give each"
    with pytest.raises(UserError, match=f"^{corpus}/both.jsonl: {says}"):
        read_manifest(corpus / "both.jsonl")
    with pytest.raises(UserError, match=f"^{corpus}/n.jsonl: {says}"):
        read_manifest(corpus / "m.jsonl", corpus / "n.jsonl")


def test_a_manifest_is_read_line_by_line(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"path": "a.flac"}\nbroken\n')
    lines = iterate_manifest(tmp_path / "m.jsonl")
    assert next(lines).id == "a.flac"
    with pytest.raises(UserError, match=r"m.jsonl:2: 1 fields"):
        next(lines)

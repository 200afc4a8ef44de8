"""Corpora: what the readers say of folders and caption sets in their published formats."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from data_pipelines import Entry, corpora, read_manifest
from data_pipelines.corpora import LeftOut
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000


def put(*paths: Path) -> None:
    """A short tone in each of the files."""
    wave = np.sin(np.arange(800) / 5).astype(np.float32) / 2
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, wave, RATE)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def entries_of(corpus) -> dict[str, Entry]:
    return {item.id: item for item in corpus if isinstance(item, Entry)}


def left_out(corpus) -> dict[str, str]:
    return {Path(i.file).name: i.reason for i in corpus if isinstance(i, LeftOut)}


def test_a_folder_lists_all_audio_in_a_fixed_order(tmp_path):
    put(tmp_path / "b.wav", tmp_path / "a/z.flac", tmp_path / "a/b.ogg")
    write(tmp_path / "notes.txt", "no audio")
    found = list(corpora.Folder(tmp_path))
    assert [entry.id for entry in found] == ["b.wav", "a/b.ogg", "a/z.flac"]
    assert found == list(corpora.Folder(str(tmp_path)))
    assert found[1] == Entry(tmp_path / "a/b.ogg", "a/b.ogg")


def test_librispeech_gives_speaker_and_text(tmp_path):
    folder = tmp_path / "dev-clean/1272/128104"
    names = [f"1272-128104-000{number}" for number in range(3)]
    put(*(folder / f"{name}.flac" for name in names), tmp_path / "intro.flac")
    texts = f"{names[0]} MISTER QUILTER IS THE APOSTLE\n{names[1]} NOR IS MISTER QUILTER'S MANNER\n"
    write(folder / "1272-128104.trans.txt", texts)
    corpus = corpora.Folder(tmp_path, layout=corpora.librispeech)
    found = entries_of(corpus)
    assert [entry.text for entry in found.values()] == [
        "MISTER QUILTER IS THE APOSTLE",
        "NOR IS MISTER QUILTER'S MANNER",
        "",
    ]
    first = found[f"dev-clean/1272/128104/{names[0]}.flac"]
    assert (first.speaker, first.language, first.domain) == ("1272", "en", "speech")
    assert left_out(corpus) == {
        "intro.flac": "not named SPEAKER-CHAPTER-UTTERANCE as LibriSpeech does"
    }


def test_vctk_gives_speaker_and_text(tmp_path):
    put(*(tmp_path / f"wav48_silence_trimmed/p225/p225_001_mic{n}.flac" for n in (1, 2)))
    put(tmp_path / "wav48_silence_trimmed/s5/s5_002_mic1.flac", tmp_path / "wav48/p315/p315_9.wav")
    write(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    found = entries_of(corpora.Folder(tmp_path, layout=corpora.vctk))
    assert [(entry.speaker, entry.text) for entry in found.values()] == [
        ("p315", ""),
        ("p225", "Please call Stella."),
        ("p225", "Please call Stella."),
        ("s5", ""),
    ]


def test_a_pattern_reads_fields_off_the_path(tmp_path):
    put(tmp_path / "en/anna/01.flac", tmp_path / "de/bert/02.flac", tmp_path / "stray.flac")
    layout = corpora.by_pattern(r"^(?P<language>\w\w)/(?P<speaker>[^/]+)/(?P<id>\d+)")
    corpus = corpora.Folder(tmp_path, layout=layout)
    found = entries_of(corpus)
    assert {k: (e.language, e.speaker) for k, e in found.items()} == {
        "02": ("de", "bert"),
        "01": ("en", "anna"),
    }
    assert "does not match" in left_out(corpus)["stray.flac"]


def test_texts_may_lie_beside(tmp_path):
    put(tmp_path / "19/19_198_000.wav", tmp_path / "19/19_198_001.wav")
    write(tmp_path / "19/19_198_000.normalized.txt", "\ufeffHow do  you do?\n")
    found = corpora.Folder(tmp_path, text_suffix=".normalized.txt")
    assert [entry.text for entry in found] == ["How do you do?", ""]
    (tmp_path / "19/19_198_000.normalized.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"19_198_000.normalized.txt: .*not UTF-8"):
        list(found)


@pytest.mark.parametrize(
    ("pattern", "says"), [("(", "correct the expression"), (r"(?P<voice>a)", "name groups after")]
)
def test_a_bad_pattern_is_named(pattern, says):
    with pytest.raises(UserError, match=says):
        corpora.by_pattern(pattern)


def test_a_folder_has_to_be_there_and_hold_audio(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/none: no such folder"):
        list(corpora.Folder(tmp_path / "none"))
    with pytest.raises(UserError, match=f"^{tmp_path}: no audio files"):
        list(corpora.Folder(tmp_path))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path / "a/b.wav")

    def refused(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/a"))

    monkeypatch.setattr(corpora.folders.os, "walk", refused)
    with pytest.raises(UserError, match=r"/a: cannot be listed .Permission denied"):
        list(corpora.Folder(tmp_path))


def test_a_folder_in_a_bucket(bucket, tmp_path):
    for name in ("19-1-0.flac", "19-1-1.flac"):
        put(tmp_path / name)
        bucket.pipe(f"gs://b/set/19/1/{name}", (tmp_path / name).read_bytes())
    bucket.pipe("gs://b/set/19/1/19-1.trans.txt", b"19-1-1 HELLO\n")
    found = list(corpora.Folder("gs://b/set", layout=corpora.librispeech))
    assert [entry.path for entry in found] == [
        epath.Path(f"gs://b/set/19/1/19-1-{number}.flac") for number in (0, 1)
    ]
    assert [(entry.id, entry.text) for entry in found][1] == ("19/1/19-1-1.flac", "HELLO")
    assert len(found[1].read(RATE)) == 800


AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
97151,vfY_TJq7n_U,130,"Rustling occurs, ducks quack and water splashes"
108945,tdWhHV3X25Q,60,An audience gives applause as a man yells
97152,vfY_TJq7n_U,130,Ducks quack
107898,tw76HGONaKg,570,A man speaks over intermittent keyboard taps
107892,-i66RjZWTp0,20,A male speaks as metal clicks
5,zofjfKhqLk8,10,A bell
"""


def test_audiocaps_joins_all_captions_of_a_clip(tmp_path):
    names = ("YvfY_TJq7n_U", "108945", "tw76HGONaKg_570_580", "-i66RjZWTp0_20000_30000", "other")
    put(*(tmp_path / f"audio/{name}.wav" for name in names))
    listed = write(tmp_path / "val.csv", AUDIOCAPS)
    corpus = corpora.AudioCaps([listed], tmp_path / "audio")
    assert {Path(name).stem: e.captions for name, e in entries_of(corpus).items()} == {
        names[0]: ("Rustling occurs, ducks quack and water splashes", "Ducks quack"),
        names[1]: ("An audience gives applause as a man yells",),
        names[2]: ("A man speaks over intermittent keyboard taps",),
        names[3]: ("A male speaks as metal clicks",),
    }
    first = next(iter(corpus))
    assert (first.domain, first.split, first.language) == ("audio", "val", "en")
    assert first.source == "AudioCaps: YouTube vfY_TJq7n_U, from 130 s"
    assert left_out(corpus) == {
        "val.csv: zofjfKhqLk8": f"no audio of this name in {tmp_path}/audio",
        "other.wav": "no caption in val.csv",
    }


def test_lists_of_one_folder_are_joined_together(tmp_path):
    put(tmp_path / "audio/a1.wav", tmp_path / "audio/b1.wav", tmp_path / "audio/deep/a1.flac")
    head = "audiocap_id,youtube_id,start_time,caption\n"
    lists = [
        write(tmp_path / "train.csv", f"{head}1,a1,0,A dog\n"),
        write(tmp_path / "test.csv", f"{head}2,b1,0,A cat\n3,a1,5,A cow\n"),
    ]
    corpus = corpora.AudioCaps(lists, tmp_path / "audio")
    assert [(e.split, e.captions) for e in entries_of(corpus).values()] == [
        ("train", ("A dog",)),
        ("test", ("A cat",)),
    ]
    assert left_out(corpus) == {
        "a1.flac": f"{tmp_path}/audio/a1.wav has the same name; rename one",
        "test.csv: a1": "listed twice; the first is taken",
    }


def clotho(folder: Path, split: str = "development") -> Path:
    captions = ",".join(f"caption_{number}" for number in range(1, 6))
    row = 'Distorted AM Radio noise.wav,A muddled noise,"A tv, out of tune",c,d,A muddled noise\n'
    return write(folder / f"clotho_captions_{split}.csv", f"file_name,{captions}\n{row}")


def test_clotho_has_five_captions_and_licences(tmp_path):
    put(tmp_path / "development/Distorted AM Radio noise.flac")
    listed = clotho(tmp_path)
    corpus = corpora.Clotho([listed], tmp_path / "development")
    (entry,) = corpus
    assert entry.captions == ("A muddled noise", "A tv, out of tune", "c", "d")
    assert (entry.split, entry.licence, entry.source) == ("train", "", "Clotho")
    write(
        tmp_path / "clotho_metadata_development.csv",
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
        "Distorted AM Radio noise.wav,noise;café,1,https://freesound.org/s/1,,José,"
        "http://creativecommons.org/publicdomain/zero/1.0/\n",
        encoding="latin-1",
    )
    (entry,) = corpus
    assert entry.licence == "http://creativecommons.org/publicdomain/zero/1.0/"
    assert entry.source == "Clotho: https://freesound.org/s/1"
    (held,) = corpora.Clotho([clotho(tmp_path, "evaluation")], tmp_path / "development")
    assert held.split == "evaluation"


def wavcaps(path: Path, *items: dict) -> Path:
    return write(path, json.dumps({"num_captions_per_audio": 1, "data": list(items)}))


def test_wavcaps_finds_the_files_of_each_source(tmp_path):
    put(tmp_path / "audio/AudioSet_SL_flac/Yb0RFKhbpFJA.flac")
    put(tmp_path / "audio/SoundBible/2219.flac", tmp_path / "audio/SoundBible/7.flac")
    about = {"title": "Airplane", "audio": "wav_path", "duration": 14.1, "href": "2219.html"}
    lists = [
        wavcaps(
            tmp_path / "json/as_final.json",
            {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind blows.", "audio": "x", "duration": 10.0},
        ),
        wavcaps(
            tmp_path / "json/sb_final.json",
            about | {"id": "2219", "caption": "An airplane is landing."},
            about | {"id": 8, "caption": ["a", "b"]},
        ),
    ]
    corpus = corpora.WavCaps(lists, tmp_path / "audio")
    assert [(e.id, e.captions, e.source) for e in entries_of(corpus).values()] == [
        ("Yb0RFKhbpFJA.flac", ("Wind blows.",), "AudioSet_SL: Yb0RFKhbpFJA.wav"),
        ("2219.flac", ("An airplane is landing.",), "SoundBible: 2219"),
    ]
    assert left_out(corpus) == {
        "sb_final.json: 8": f"no audio of this name in {tmp_path}/audio/SoundBible",
        "7.flac": "no caption in sb_final.json",
    }


def test_esc50_has_categories_for_captions(tmp_path):
    put(tmp_path / "audio/1-100032-A-0.wav", tmp_path / "audio/1-17367-A-10.wav")
    head = "filename,fold,target,category,esc10,src_file,take\n"
    rows = "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-17367-A-10.wav,2,10,pouring_water,x,17367,A\n"
    found = list(corpora.Esc50([write(tmp_path / "esc50.csv", head + rows)], tmp_path / "audio"))
    assert [(e.captions, e.split) for e in found] == [
        (("dog",), "fold1"),
        (("pouring water",), "fold2"),
    ]


@pytest.mark.parametrize(
    ("kind", "name", "content", "says"),
    [
        ("audiocaps", "val.csv", "id,caption\n1,a\n", ":1: no column audiocap_id, start_time"),
        ("audiocaps", "val.csv", "", ":1: no column"),
        ("audiocaps", "val.csv", AUDIOCAPS + "7,a,3,b,c\n", ":8: more fields"),
        ("audiocaps", "val.csv", AUDIOCAPS + "7,a,3\n", ":8: fewer fields"),
        ("audiocaps", "val.csv", AUDIOCAPS + "7,a,3, \n", ":8: caption is empty"),
        ("audiocaps", "val.csv", AUDIOCAPS + "7,a,x,b\n", ":8: start_time is 'x'"),
        ("audiocaps", "val.csv", AUDIOCAPS + '7,a,3,"b\n', ":8: not CSV"),
        ("wavcaps", "sb_final.json", '{"data": [\n{"id": 3,}]}', ":2: not JSON"),
        ("wavcaps", "sb_final.json", "[]", ': holds no list "data"'),
        ("wavcaps", "sb_final.json", '{"data": [{"id": "3"}]}', r": data[0] has no 'id' and"),
        ("clotho", "clotho_captions_x.csv", None, ": cannot be read"),
    ],
)
def test_a_bad_list_is_named(tmp_path, kind, name, content, says):
    put(tmp_path / "audio/a.wav")
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path) + says)}") as error:
        list(corpora.CAPTION_SETS[kind]([path], tmp_path / "audio"))
    assert "\n" not in str(error.value)


def test_the_command_joins_captions(tmp_path):
    put(tmp_path / "audio/a1.wav", tmp_path / "audio/b1.wav")
    listed = write(
        tmp_path / "train.csv", "audiocap_id,youtube_id,start_time,caption\n1,a1,0,A dog\n"
    )
    run = [
        sys.executable,
        "-m",
        "data_pipelines.corpora",
        "audiocaps",
        listed,
        tmp_path / "m.jsonl",
    ]
    run += ["--audio", tmp_path / "audio", "--workers", "1", "--name", "audiocaps"]
    done = subprocess.run(list(map(str, run)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "1 recordings" in done.stdout and "left out: 1;" in done.stdout
    (entry,) = read_manifest(tmp_path / "m.jsonl")
    assert (entry.id, entry.captions, entry.seconds) == ("audiocaps/a1.wav", ("A dog",), 0.05)

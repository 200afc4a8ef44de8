"""The scan: what can be used is written, the rest listed with reasons; nothing is done twice."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import Entry, corpora, read_manifest
from data_pipelines.corpora import (
    Folder,
    LeftOut,
    Manifest,
    Rules,
    by_pattern,
    left_out_path,
)
from data_pipelines.corpora.journal import open_journal
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000
scan_module = importlib.import_module("data_pipelines.corpora.scan")  # not the function


def tone(seconds: float = 0.2, hertz: float = 300.0) -> np.ndarray:
    return np.sin(np.arange(round(seconds * RATE)) * hertz / RATE * 2 * np.pi).astype("f4") / 2


def put(path: Path, wave: np.ndarray | None = None, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, tone() if wave is None else wave, rate)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three recordings that can be used, one of them stereo, and four files that cannot."""
    folder = tmp_path / "corpus"
    put(folder / "a.flac")
    put(folder / "deep/b.wav", tone(0.5), 44_100)
    soundfile.write(folder / "stereo.wav", np.stack((tone(), tone() / 2), 1), RATE)
    put(folder / "silent.wav", np.zeros(8000, np.float32))
    (folder / "junk.mp3").write_bytes(b"not audio at all" * 50)
    (folder / "empty.wav").write_bytes(b"")
    put(folder / "cut.flac", np.random.default_rng(0).normal(0, 0.1, 40_000).astype("f4"))
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:30_000])
    return folder


def scan(corpus, out: Path, **options):
    return corpora.scan(corpus, out, **{"workers": 1, "progress": False} | options)


def listed(out: Path) -> dict[str, str]:
    lines = map(json.loads, left_out_path(out).read_text().splitlines())
    return {Path(line["file"]).name: line["reason"] for line in lines}


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The names of the files that are decoded from here on."""
    names, look_at = [], scan_module._look_at

    def counted(entry):
        names.append(entry.path.name)
        return look_at(entry)

    monkeypatch.setattr(scan_module, "_look_at", counted)
    return names


def test_the_manifest_holds_what_can_be_used_and_the_list_why_the_rest_cannot(folder, tmp_path):
    out = tmp_path / "m.jsonl"
    done = scan(Folder(folder), out, rules=Rules(language="en", licence="CC0-1.0"))
    found = read_manifest(out)
    assert [entry.id for entry in found] == ["a.flac", "stereo.wav", "deep/b.wav"]
    assert [(e.rate, e.channels, e.seconds) for e in found] == [
        (16_000, 1, 0.2),
        (16_000, 2, 0.2),
        (44_100, 1, round(8000 / 44_100, 4)),
    ]
    assert {(e.language, e.licence, e.split) for e in found} == {("en", "CC0-1.0", "train")}
    reasons = listed(out)
    assert set(reasons) == {"silent.wav", "junk.mp3", "empty.wav", "cut.flac"}
    assert reasons["silent.wav"] == "silent" and "cut" in reasons["cut.flac"]
    assert "empty" in reasons["empty.wav"] and str(folder) not in reasons["junk.mp3"]
    assert (done.recordings, done.left_out, done.looked_at, done.vanished) == (3, 4, 7, 0)
    assert done.hours == pytest.approx(sum(e.seconds for e in found) / 3600)


def test_processes_find_the_same(folder, tmp_path):
    scan(Folder(folder), tmp_path / "one.jsonl")
    scan(Folder(folder), tmp_path / "two.jsonl", workers=2)
    for name in ("one.jsonl", "one.left_out.jsonl"):
        twin = tmp_path / name.replace("one", "two")
        assert (tmp_path / name).read_bytes() == twin.read_bytes()


def test_running_again_does_only_what_is_new(folder, tmp_path, looked):
    out = tmp_path / "m.jsonl"
    scan(Folder(folder), out)
    first = out.read_bytes(), left_out_path(out).read_bytes()
    looked.clear()
    assert scan(Folder(folder), out).looked_at == 0
    assert looked == [] and first == (out.read_bytes(), left_out_path(out).read_bytes())
    put(folder / "new.flac")
    put(folder / "a.flac", tone(0.4))
    put(folder / "junk.mp3")
    done = scan(Folder(folder), out)
    assert sorted(looked) == ["a.flac", "junk.mp3", "new.flac"] and done.looked_at == 3
    found = {entry.id: entry.seconds for entry in read_manifest(out)}
    assert found["a.flac"] == 0.4 and "new.flac" in found and "junk.mp3" in found


def test_a_change_that_keeps_the_size_is_seen(tmp_path, looked):
    path = put(tmp_path / "c/a.wav")
    put(tmp_path / "c/b.wav")
    scan(Folder(path.parent), tmp_path / "m.jsonl")
    put(path, np.zeros_like(tone()))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    scan(Folder(path.parent), tmp_path / "m.jsonl")
    assert looked == ["a.wav", "b.wav", "a.wav"]
    assert listed(tmp_path / "m.jsonl") == {"a.wav": "silent"}


def test_vanished_files_are_reported_once(folder, tmp_path):
    out = tmp_path / "m.jsonl"
    scan(Folder(folder), out)
    (folder / "a.flac").unlink()
    done = scan(Folder(folder), out)
    assert done.vanished == 1 and listed(out)["a.flac"].startswith("vanished")
    assert "a.flac" not in {entry.id for entry in read_manifest(out)}
    assert scan(Folder(folder), out).vanished == 0 and "a.flac" not in listed(out)


def test_an_interrupted_scan_goes_on(folder, tmp_path, looked, monkeypatch):
    monkeypatch.setattr(scan_module, "_GROUP", 1)
    scan(Folder(folder), tmp_path / "whole.jsonl")
    counted = scan_module._look_at

    def interrupted(entry):
        if len(looked) == 4:
            raise KeyboardInterrupt
        return counted(entry)

    looked.clear()
    out = tmp_path / "m.jsonl"
    monkeypatch.setattr(scan_module, "_look_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(Folder(folder), out)
    assert not out.exists() and not list(tmp_path.glob(".*partial*"))
    monkeypatch.setattr(scan_module, "_look_at", counted)
    assert scan(Folder(folder), out).looked_at == 3
    assert len(looked) == len(set(looked)) == 7
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_rules_need_no_new_look(folder, tmp_path, looked):
    out = tmp_path / "m.jsonl"
    scan(Folder(folder), out)
    looked.clear()
    scan(Folder(folder), out, rules=Rules(name="mine", source="me", domain="speech", split="x"))
    assert looked == []
    first = read_manifest(out)[0]
    assert (first.id, first.source, first.domain, first.split) == (
        "mine/a.flac",
        "me",
        "speech",
        "x",
    )


def test_no_speaker_is_in_two_splits(tmp_path):
    lines = [
        json.dumps({"path": f"c/{i % 40}.wav", "id": f"u{i}", "speaker": f"s{i % 40}"})
        for i in range(400)
    ]
    for i in range(40):
        put(tmp_path / f"c/{i}.wav")
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    rules = Rules(heldout_speakers=frozenset(("s1", "s2")), heldout_share=0.25)
    corpus = Manifest(tmp_path / "list.jsonl")
    scan(corpus, tmp_path / "m.jsonl", rules=rules)
    found = read_manifest(tmp_path / "m.jsonl")
    splits = {speaker: set() for speaker in {entry.speaker for entry in found}}
    for entry in found:
        splits[entry.speaker].add(entry.split)
    assert all(len(names) == 1 for names in splits.values())
    heldout = {speaker for speaker, names in splits.items() if names == {"heldout"}}
    assert {"s1", "s2"} < heldout and 4 <= len(heldout) <= 20
    fewer = Rules(heldout_share=0.1)
    assert {s for s in splits if fewer.apply(Entry(Path("a"), "a", speaker=s)).split == "heldout"}


def test_speakers_to_be_held_out_that_are_not_there_are_refused(tmp_path):
    put(tmp_path / "c" / "anna" / "a.wav")
    corpus = Folder(tmp_path / "c", layout=by_pattern("(?P<speaker>[^/]+)/"))
    rules = Rules(heldout_speakers=frozenset(("anna", "ben", "Anna")))
    with pytest.raises(UserError, match=r"^--heldout-speakers Anna, ben: "):
        scan(corpus, tmp_path / "m.jsonl", rules=rules)
    assert not (tmp_path / "m.jsonl").exists()


def test_named_corpora_can_be_joined(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name / "a.wav")
        line = {"path": f"{name}/a.wav", "id": "a", "speaker": "p225"}
        (tmp_path / f"{name}.list").write_text(json.dumps(line))
        rules = Rules(name=name, heldout_speakers=frozenset(("p225",)))
        scan(Manifest(tmp_path / f"{name}.list"), tmp_path / f"{name}.jsonl", rules=rules)
        assert not listed(tmp_path / f"{name}.jsonl")  # the speaker was met
    found = read_manifest(tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    assert [(entry.id, entry.speaker) for entry in found] == [
        ("one/a", "one/p225"),
        ("two/a", "two/p225"),
    ]
    assert {entry.split for entry in found} == {"heldout"}


def test_the_share_is_a_share_of_the_speakers():
    rules = Rules(heldout_share=0.1)
    entries = [Entry(Path("a"), "a", speaker=f"speaker {i}") for i in range(5000)]
    heldout = sum(rules.apply(entry).split == "heldout" for entry in entries)
    assert 430 < heldout < 570  # five standard deviations about 500 are 106


def test_sections_are_looked_at_alone(tmp_path, looked):
    wave = np.concatenate((tone(1), np.zeros(RATE, np.float32)))
    put(tmp_path / "long.flac", wave)
    rows = ("s1 16000 0 16000", "s2 16000 16000 8000", "s3 16000 30000 8000", "s4 8000 0 100")
    (tmp_path / "x.scp").write_text("\n".join(f"{row} long.flac" for row in rows))
    scan(Manifest(tmp_path / "x.scp"), tmp_path / "m.jsonl")
    (found,) = read_manifest(tmp_path / "m.jsonl")
    assert (found.id, found.seconds, found.frames) == ("s1", 1.0, 16000)
    lines = left_out_path(tmp_path / "m.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons[0] == "silent" and "are not in its" in reasons[1] and "16000 Hz" in reasons[2]
    looked.clear()
    assert scan(Manifest(tmp_path / "x.scp"), tmp_path / "m.jsonl").looked_at == 0


def test_listed_files_that_are_missing_and_ids_given_twice(tmp_path):
    put(tmp_path / "a.wav")
    put(tmp_path / "b.wav")
    (tmp_path / "x.scp").write_text("u1 a.wav\nu1 b.wav\nu2 none.wav\n")
    out = tmp_path / "m.jsonl"
    scan(Manifest(tmp_path / "x.scp"), out)
    assert [entry.path.name for entry in read_manifest(out)] == ["a.wav"]
    assert listed(out) == {
        "b.wav": f"its id 'u1' is that of {tmp_path}/a.wav; give another",
        "none.wav": "no such file; check the path",
    }
    put(tmp_path / "none.wav")
    assert scan(Manifest(tmp_path / "x.scp"), out).recordings == 2


def test_what_a_corpus_leaves_out_is_listed(folder, tmp_path):
    corpus = [LeftOut("row 3", "no audio"), Entry(folder / "a.flac", "a", captions=("a tone",))]
    done = scan(corpus, tmp_path / "m.jsonl")
    assert done.left_out == 1 and listed(tmp_path / "m.jsonl") == {"row 3": "no audio"}
    assert read_manifest(tmp_path / "m.jsonl")[0].captions == ("a tone",)


def test_audio_in_a_bucket(bucket, tmp_path, looked):
    bucket.pipe("gs://b/c/a.flac", put(tmp_path / "a.flac").read_bytes())
    bucket.pipe("gs://b/c/junk.flac", b"junk")
    out = tmp_path / "m.jsonl"
    scan(Folder("gs://b/c"), out)
    (found,) = read_manifest(out)
    assert (str(found.path), found.seconds) == ("gs://b/c/a.flac", 0.2)
    assert listed(out)["junk.flac"].startswith("cannot be read as audio")
    looked.clear()
    assert scan(Folder("gs://b/c"), out).looked_at == 0


def test_what_could_not_be_opened_is_tried_again(bucket, tmp_path, monkeypatch, looked):
    bucket.pipe("gs://b/c/a.flac", put(tmp_path / "c/a.flac").read_bytes())
    bucket.pipe("gs://b/c/b.flac", put(tmp_path / "c/b.flac").read_bytes())
    opened = bucket.open

    def flaky(path, mode):
        if str(path).endswith("b.flac"):
            raise TimeoutError("no answer")
        return opened(path, mode)

    monkeypatch.setattr(bucket, "open", flaky)
    scan(Folder("gs://b/c"), tmp_path / "cloud.jsonl")
    assert listed(tmp_path / "cloud.jsonl")["b.flac"].startswith("cannot be fetched (no answer)")
    monkeypatch.setattr(bucket, "open", opened)
    assert scan(Folder("gs://b/c"), tmp_path / "cloud.jsonl").looked_at == 1
    (tmp_path / "c/b.flac").write_bytes(b"as if it could not be read")
    monkeypatch.setattr(scan_module.os, "access", lambda path, mode: path.name != "b.flac")
    scan(Folder(tmp_path / "c"), tmp_path / "m.jsonl")
    monkeypatch.undo()
    assert scan(Folder(tmp_path / "c"), tmp_path / "m.jsonl").looked_at == 1
    assert scan(Folder(tmp_path / "c"), tmp_path / "m.jsonl").looked_at == 0


def test_nothing_usable_leaves_the_old_manifest(tmp_path):
    put(tmp_path / "c/a.wav", np.zeros(800, np.float32))
    out = tmp_path / "m.jsonl"
    out.write_text("old")
    with pytest.raises(UserError, match=r"m.jsonl: not written, none .*m.left_out.jsonl"):
        scan(Folder(tmp_path / "c"), out)
    assert out.read_text() == "old" and listed(out) == {"a.wav": "silent"}
    assert not list(tmp_path.glob(".*"))


def test_the_journal_has_to_be_ours_alone_and_whole(folder, tmp_path):
    out = tmp_path / "m.jsonl"
    with (
        open_journal(tmp_path / "m.scan.sqlite"),
        pytest.raises(UserError, match="another scan is at work"),
    ):
        scan(Folder(folder), out)
    scan(Folder(folder), out)
    (tmp_path / "m.scan.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(UserError, match=r"m.scan.sqlite: the journal .*delete it"):
        scan(Folder(folder), out)


def test_no_place_to_write(folder, tmp_path):
    with pytest.raises(UserError, match=f"folder {tmp_path}/none does not exist"):
        scan(Folder(folder), tmp_path / "none/m.jsonl")
    with pytest.raises(UserError, match="workers: 0; give at least 1"):
        scan(Folder(folder), tmp_path / "m.jsonl", workers=0)


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "data_pipelines.corpora", *map(str, arguments)]


def run_command(*arguments, cwd: Path | None = None) -> subprocess.CompletedProcess:
    run = command(*arguments)
    return subprocess.run(run, capture_output=True, text=True, timeout=60, cwd=cwd)


def test_the_command(folder, tmp_path):
    out = tmp_path / "m.jsonl"
    done = run_command("folder", folder, out, "--language", "en", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "3 recordings, 0.00 h; 7 looked at" in done.stdout
    assert f"left out: 4; reasons in {tmp_path}/m.left_out.jsonl" in done.stdout
    assert {entry.language for entry in read_manifest(out)} == {"en"}
    done = run_command("manifest", out, tmp_path / "again.jsonl", "--workers", 1, "--split", "test")
    assert {entry.split for entry in read_manifest(tmp_path / "again.jsonl")} == {"test"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("folder", "none", "m.jsonl"), "none: no such folder"),
        (("folder", ".", "m.jsonl", "--heldout-share", "1.5"), "--heldout-share 1.5: give"),
        (("manifest", "none", "m.jsonl"), "none: cannot read the manifest"),
        (("tfds", "none", "m.jsonl", "--export", "e", "--field", "text"), "--field text: give"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments, says, tmp_path):
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"quark: {says}") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_the_command_and_its_processes(tmp_path):
    """SIGINT to the whole group, as a terminal sends it."""
    for i in range(200):
        put(tmp_path / f"c/{i:03d}.flac", tone(10, 200 + i))
    out = tmp_path / "m.jsonl"
    run = command("folder", tmp_path / "c", out, "--workers", 2)
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = tmp_path / "m.scan.sqlite"
    deadline = time.monotonic() + 50
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 130, errors
    assert "run the same command again to go on" in errors and "Traceback" not in errors
    assert not out.exists()
    assert run_command("folder", tmp_path / "c", out, "--workers", 1).returncode == 0
    assert len(read_manifest(out)) == 200

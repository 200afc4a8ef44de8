"""From the name of a task and a manifest to examples; the viewer writes them to be looked at."""

import json
import sys
from dataclasses import replace
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest

from data_pipelines import Entry, view, write_manifest
from data_pipelines.alignments import Word, write_ctm
from data_pipelines.examples import TASK_SOURCES, make_source
from data_pipelines.simulation import is_silent
from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.lm.tasks import TASKS


@pytest.fixture(scope="module")
def corpus(entries) -> tuple[list[Entry], dict[str, list[Word]]]:
    """The samples as speech; some of them with captions as sounds; words at every 0.3 s."""
    mixed = list(entries)
    for number in range(13, 20):
        text = f"voice {'abcdefghij'[number - 13] * 4} speaks"
        mixed[number] = replace(entries[number], domain="audio", captions=(text,))
    alignments = {}
    for entry in entries[:12]:
        edges = np.arange(0.2, entry.seconds, 0.3)
        alignments[entry.id] = [
            Word(f"w{n}", float(start), float(stop))
            for n, (start, stop) in enumerate(pairwise(edges))
        ]
    return mixed, alignments


@pytest.mark.parametrize("task", TASK_SOURCES)
def test_every_task_is_made_from_its_name(corpus, task):
    entries, alignments = corpus
    source = make_source(task, entries, seconds=2, seed=3, length=4, alignments=alignments)
    assert len(source) == 4 and source.rate == 16_000 and source.seconds == 2
    known = {known.name: known for known in TASKS}
    for index in range(2):
        example = source[index]
        asked = known[example.task]
        assert example.task == task.split("-")[0]
        assert (example.input is not None) == asked.input
        assert (example.reference is not None) == asked.reference
        assert bool(example.caption) == asked.caption
        assert not is_silent(example.target) and len(example.target) <= 2 * 16_000
        if asked.aligned:
            assert len(example.target) == len(example.input) == 2 * 16_000
    assert source.describe() == json.loads(json.dumps(source.describe()))


def test_both_kinds_of_edit_come_up_where_there_is_both(corpus):
    entries, alignments = corpus
    source = make_source("edit", entries, seconds=2, length=12, alignments=alignments)
    kinds = {
        source[index].provenance["operation"] in ("insert", "delete", "substitute")
        for index in range(12)
    }
    assert kinds == {True, False}
    assert make_source("edit", entries).describe()["kind"] == "events"
    plain = [replace(entry, captions=()) for entry in entries]
    assert make_source("edit", plain, alignments=alignments).describe()["kind"] == "speech"
    with pytest.raises(UserError, match="captions, or word alignments"):
        make_source("edit", plain)


def test_noise_and_rooms_come_from_their_domains(tmp_path, corpus):
    entries, _ = corpus
    rng = np.random.default_rng(0)
    audio.write(
        tmp_path / "noise.wav", 0.1 * rng.standard_normal(40_000).astype(np.float32), 16_000
    )
    noise = Entry(tmp_path / "noise.wav", "noise", domain="noise")
    source = make_source("sr", [*entries, noise], seconds=1, length=20)
    assert "noise" in {source[index].provenance["noise"] for index in range(20)}
    assert source.describe()["noise"] != make_source("sr", entries).describe()["noise"]
    files = {source[index].provenance["file"] for index in range(20)}
    assert files <= {entry.id for entry in entries if entry.domain == ""}
    audio.write(tmp_path / "room.wav", np.array((0, 1, 0, 0.5), np.float32), 16_000)
    room = Entry(tmp_path / "room.wav", "room", domain="room")
    for task in ("sr", "aec"):
        source = make_source(task, [*entries, room], seconds=0.5, length=20)
        names = {source[index].provenance["room"] for index in range(20)}
        assert names - {""} == {"room"}


def test_a_split_has_its_own_surroundings_or_those_of_all(tmp_path, corpus):
    entries, _ = corpus
    assert {entry.split for entry in entries} == {"train", "heldout"}
    rng = np.random.default_rng(0)
    found = []
    for name in ("one", "two"):
        for domain in ("noise", "room"):
            path = tmp_path / f"{name}-{domain}.wav"
            audio.write(path, 0.1 * rng.standard_normal(20_000).astype(np.float32), 16_000)
            found.append(Entry(path, path.stem, domain=domain))

    def met(around: list[Entry]) -> tuple[set[str], ...]:
        source = make_source("sr", [*entries, *around], seconds=0.5, length=40, split="heldout")
        made = [source[index].provenance for index in range(40)]
        return tuple({each[name] for each in made} - {""} for name in ("file", "noise", "room"))

    files, noises, rooms = met(found)
    assert files <= {entry.id for entry in entries if entry.split == "heldout"}
    assert noises == {"one-noise", "two-noise"} and rooms == {"one-room", "two-room"}
    own = [replace(entry, split="heldout" if "two" in entry.id else "train") for entry in found]
    assert met(own)[1:] == ({"two-noise"}, {"two-room"})
    with pytest.raises(UserError, match="no recordings of split 'dev'"):
        make_source("sr", entries, split="dev")


def test_what_cannot_be_made_is_told(corpus):
    entries, _ = corpus
    with pytest.raises(UserError, match="'sing' is unknown; choose one of sr"):
        make_source("sing", entries)
    with pytest.raises(UserError, match="seed -1: has to be 0 or more"):
        make_source("sr", entries, seed=-1)
    with pytest.raises(UserError, match="needs speech"):
        make_source("sr", [replace(entry, domain="music") for entry in entries])
    with pytest.raises(UserError, match="needs word alignments"):
        make_source("edit-speech", entries)


def test_the_command_writes_waves_a_list_and_a_picture(tmp_path, corpus, monkeypatch, capsys):
    entries, alignments = corpus
    write_manifest(entries, tmp_path / "m.jsonl")
    write_ctm(alignments, tmp_path / "m.ctm")
    out = tmp_path / "out"
    command = ["view", "--manifest", str(tmp_path / "m.jsonl"), "--out", str(out)]
    wanted = ["--alignments", str(tmp_path / "m.ctm"), "--count", "1", "--seconds", "2.5"]
    monkeypatch.setattr(sys, "argv", [*command, *wanted, "--task", "all"])
    assert view._main() == 0
    assert not capsys.readouterr().err.count("left out")
    records = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert len(records) == len(TASK_SOURCES) - 1
    for record in records:
        [name] = {file.rsplit("-", 1)[0] for file in record["files"].values()}
        source = make_source(
            name.rsplit("-", 1)[0], entries, seconds=2.5, length=1, alignments=alignments
        )
        assert record["caption"] == source[0].caption
        for part, file in record["files"].items():
            wave, rate = audio.read(out / file)
            assert rate == 16_000
            assert np.allclose(wave, getattr(source[0], part), atol=1e-4)
    picture = matplotlib.image.imread(out / "examples.png")
    assert picture.shape[0] > 200 * len(records) and picture[..., :3].std() > 0.1
    written = {file for record in records for file in record["files"].values()}
    assert {path.name for path in out.iterdir()} == written | {"examples.jsonl", "examples.png"}

    monkeypatch.setattr(sys, "argv", [*command, "--task", "edit-speech"])
    assert view._main() == 2
    assert "needs word alignments" in capsys.readouterr().err
    for option in (["--count", "0"], ["--seed", "-1"], ["--first", "-5"]):
        monkeypatch.setattr(sys, "argv", [*command, *option])
        assert view._main() == 2
        assert " ".join(option) in capsys.readouterr().err


def test_tasks_without_recordings_are_left_out_of_all(tmp_path, entries, monkeypatch, capsys):
    write_manifest(entries[:12], tmp_path / "m.jsonl")
    out = tmp_path / "out"
    command = ["view", "--manifest", str(tmp_path / "m.jsonl"), "--out", str(out), "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--count", "1"])
    assert view._main() == 0
    told = capsys.readouterr().err
    assert "left out lass" in told and "left out edit-speech" in told
    assert (out / "sr-0-input.wav").is_file() and not (out / "lass-0-input.wav").exists()

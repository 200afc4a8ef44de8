"""`quark eval tasks` on small models and real recordings."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import Entry, read_manifest, samples_manifest, write_manifest
from data_pipelines.examples import make_source
from quark_jax import audio
from quark_jax.cli import main
from quark_jax.errors import UserError
from quark_jax.evaluation import mel_distance, stoi, tasks
from quark_jax.lm import Sampling
from quark_jax.pipeline import QuarkAudio

RATE = 16_000
HEAVY = ("speechmos.dnsmos", "speechmos.plcmos", "resemblyzer", "jiwer")


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Two recordings each of three speakers, of 2 to 30 s."""
    found: dict[str, list[Entry]] = {}
    for entry in read_manifest(samples_manifest()):
        found.setdefault(entry.speaker, []).append(replace(entry, split="heldout"))
    long = {name: [e for e in own if 2 < e.seconds < 4][:2] for name, own in found.items()}
    return [entry for name in sorted(long)[:3] for entry in long[name]]


@pytest.fixture
def light(monkeypatch):
    for package in HEAVY:
        monkeypatch.setitem(sys.modules, package, None)


def _clips(name: str, entries: list[Entry], count: int, **options) -> list[tasks.Clip]:
    return tasks.clips(name, entries, count, rate=RATE, seconds=1.0, **options)


def test_restoration_is_asked_of_whole_recordings_in_noise_of_the_ratio(entries):
    drawn = _clips("sr", entries, 6, snr_db=(4.0, 6.0))
    known = {entry.id: entry for entry in entries}
    assert len({clip.id for clip in drawn}) == 6
    for clip in drawn:
        entry, example = known[clip.id], clip.example
        whole = entry.read(RATE)
        scale = example.target.max() / whole.max()
        np.testing.assert_allclose(example.target, scale * whole, atol=1e-5)
        plan = example.provenance["plan"]
        assert 4 <= plan["snr_db"] <= 6 and not plan["channel"]
        assert plan["sir_db"] is None and not plan["reverberant"]
        noise = example.input - example.target
        assert 0 < np.sum(noise**2) < np.sum(example.target**2)
        assert clip.text == (entry.text if entry.language == "en" else "")
        assert clip.wanted is None
    again = _clips("sr", entries, 6, snr_db=(4.0, 6.0))
    np.testing.assert_array_equal(drawn[3].example.input, again[3].example.input)
    assert len({clip.example.provenance["plan"]["snr_db"] for clip in drawn}) == 6
    published = [clip.example.provenance["plan"] for clip in _clips("sr", entries, 6)]
    assert any(plan["channel"] or plan["reverberant"] for plan in published)


@pytest.mark.parametrize("name", ["tse", "rtse"])
def test_the_voices_that_compete_are_those_of_the_mixture(entries, name):
    known = {entry.id: entry for entry in entries}
    for clip in _clips(name, entries, 3, snr_db=(0.0, 10.0)):
        told = clip.example.provenance
        target, other = known[told["file"]], known[told["interferer"]]
        assert target.speaker != other.speaker
        assert told["plan"]["sir_db"] is not None
        enrolled, recorded = (
            (clip.wanted, clip.other) if name == "tse" else (clip.other, clip.wanted)
        )
        np.testing.assert_array_equal(enrolled, clip.example.reference)
        whole = other if name == "tse" else target
        np.testing.assert_array_equal(recorded, whole.read(RATE))
        speaker = target.speaker if name == "tse" else other.speaker
        assert known[told["enrolment"]].speaker == speaker


def test_events_are_asked_of_examples_as_in_training(entries):
    told = [replace(e, captions=(f"sound {i}",)) for i, e in enumerate(entries)]
    drawn = _clips("lass", told, 2)
    source = make_source("lass", told, rate=RATE, seconds=1.0)
    assert len(drawn) == 2
    np.testing.assert_array_equal(drawn[0].example.input, source[0].input)
    assert drawn[0].example.caption
    assert list(tasks.metrics_of("lass")) == ["sdr", "mel"]
    with pytest.raises(UserError, match="noise alone is for speech"):
        _clips("lass", told, 2, snr_db=(0.0, 10.0))


def test_each_row_is_measured_against_the_target(entries, every_task, light, monkeypatch):
    quark = QuarkAudio.load(every_task)
    drawn = _clips("sr", entries, 3, snr_db=(0.0, 0.0))

    def perfect(jobs, sampling, batch):
        for job in jobs:
            yield job, (job.label.example.target,)

    monkeypatch.setattr(quark, "run", perfect)
    kept = []
    records, missing = tasks.evaluate(
        quark, "sr", drawn, done=lambda number, clip, waves: kept.append((number, clip.id, waves))
    )
    assert [record["id"] for record in records] == [clip.id for clip in drawn]
    assert [line.partition(":")[0] for line in missing] == [
        "DNSMOS",
        "PLCMOS",
        "speaker similarity",
        "WER (en)",
        "CER (en)",
    ]
    for record, clip, (_, name, waves) in zip(records, drawn, kept, strict=True):
        assert name == clip.id
        target = clip.example.target
        coded = quark.tokeniser.decode(quark.tokeniser.encode(target, RATE))[0][: len(target)]
        values = record["values"]
        assert values["model"]["mel"] == 0
        assert values["model"]["stoi"] == pytest.approx(1, abs=1e-6)
        assert values["input"]["mel"] == pytest.approx(
            mel_distance(target, clip.example.input, RATE)
        )
        assert values["input"]["stoi"] == pytest.approx(stoi(target, clip.example.input, RATE))
        assert values["codec"]["mel"] == pytest.approx(mel_distance(target, coded, RATE), abs=1e-4)
        assert "mel" not in values["target"]
        assert all(len(wave) == len(target) for wave in waves.values())


def test_a_voice_is_nearer_to_the_wanted_one(monkeypatch):
    alike = {(1, 1): 0.9, (2, 1): 0.4}
    monkeypatch.setattr(
        tasks.quality, "speaker_similarity", lambda voice, wave, rate: alike[voice[0], wave[0]]
    )
    metric = tasks.metrics_of("tse")["nearer"].value
    one, two = np.array([1]), np.array([2])
    assert metric(tasks.Clip(None, "", wanted=one, other=two), one, RATE) == 1
    assert metric(tasks.Clip(None, "", wanted=two, other=one), one, RATE) == 0
    assert metric(tasks.Clip(None, ""), one, RATE) is None


def test_report(entries, every_task, light, tmp_path, capsys, monkeypatch):
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "report.md"
    write_manifest(entries, manifest)
    arguments = ["--model", every_task, "--manifest", manifest, "--task", "tse", "--out", out]
    more = ["--examples", "2", "--snr", "0", "10", "--samples", "1"]
    asked, evaluate = [], tasks.evaluate

    def watched(*given, **options):
        asked.append(options["sampling"])
        return evaluate(*given, **options)

    monkeypatch.setattr(tasks, "evaluate", watched)
    assert (
        main(["eval", "tasks", *map(str, arguments), *more, "--temperature", "0.3", "--top-k", "9"])
        == 0
    )
    assert asked == [Sampling(0.3, top_k=9, guided=("reference",))]
    text, facts = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    assert "2 examples" in text and "with noise of 0 to 10 dB alone" in text
    assert "temperature 0.3, top-k 9, top-p 1, guidance 1" in text
    page = out.with_suffix(".html").read_text()
    assert page.count("<audio") == 4 and "Task tse" in page and page.count("<svg") == 3
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| input", "| model", "| codec", "| target"]
    assert text.strip() in capsys.readouterr().out
    names = ["0-codec.flac", "0-input.flac", "0-model.flac", "0-target.flac", "0.png"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names
    target, rate = audio.read(tmp_path / "report" / "0-target.flac")
    assert len(target) / rate == pytest.approx(facts["examples"][0]["seconds"])
    model, _ = audio.read(tmp_path / "report" / "0-model.flac")
    assert mel_distance(target, model, rate) == pytest.approx(
        facts["examples"][0]["values"]["model"]["mel"], abs=5e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--task": "tse"}, "was trained on sr, not on tse"),
        ({"--out": "report.txt"}, "end it in .md"),
        ({"--split": "test"}, "no recordings of split 'test'"),
        ({"--model": "missing"}, "missing"),
        ({"--top-k": "0"}, "top_k 0 must be at least 1"),
        ({"--clap": "clap"}, "clap: results of sr are not what a text describes"),
    ],
)
def test_bad_input_is_one_line_and_code_2(small_run, tmp_path, capsys, change, message):
    given = {
        "--model": small_run / "lm" / "model",
        "--manifest": samples_manifest(),
        "--task": "sr",
        "--out": tmp_path / "report.md",
    } | change
    assert main(["eval", "tasks", *(str(word) for pair in given.items() for word in pair)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())

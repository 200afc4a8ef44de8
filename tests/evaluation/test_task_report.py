"""`quark eval tasks` on small models and real recordings."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.signal import correlate

from data_pipelines import Entry, read_manifest, samples_manifest, write_manifest
from data_pipelines.examples import Example, make_source
from quark_jax import audio, lm
from quark_jax.cli import main
from quark_jax.cli.eval import TASKS
from quark_jax.errors import UserError
from quark_jax.evaluation import clips, judging, mel_distance, stoi, tasks
from quark_jax.evaluation.clips import judge, missing_packages
from quark_jax.evaluation.judging import Heard
from quark_jax.evaluation.metrics import best_permutation
from quark_jax.evaluation.readers import Item
from quark_jax.lm import Sampling
from quark_jax.pipeline import QuarkAudio

RATE = 16_000
HEAVY = ("speechmos", "resemblyzer", "jiwer")


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Two recordings each of three speakers, of 2 to 30 s."""
    found: dict[str, list[Entry]] = {}
    for entry in read_manifest(samples_manifest()):
        found.setdefault(entry.speaker, []).append(replace(entry, split="heldout"))
    long = {name: [e for e in own if 2 < e.seconds < 4][:2] for name, own in found.items()}
    return [entry for name in sorted(long)[:3] for entry in long[name]]


@pytest.fixture
def light(leave_out):
    leave_out(HEAVY)


def _clips(name: str, entries: list[Entry], count: int, **options) -> list[tuple[Example, Heard]]:
    drawn = tasks.clips(name, entries, count, rate=RATE, seconds=1.0, **options)
    made = [clip.make() for clip in drawn]
    assert [clip.id for clip in drawn] == [heard.item.id for _, heard in made]
    return made


def _run(model, manifest, name, out, *more) -> int:
    given = ["--model", model, "--manifest", manifest, "--task", name, "--out", out]
    return main(["eval", "tasks", *map(str, given), "--workers", "1", *map(str, more)])


def test_restoration_is_asked_of_whole_recordings_in_noise_of_the_ratio(entries):
    drawn = _clips("sr", entries, 6, snr_db=(4.0, 6.0))
    known = {entry.id: entry for entry in entries}
    assert len({heard.item.id for _, heard in drawn}) == 6
    for example, heard in drawn:
        entry = known[heard.item.id]
        whole = entry.read(RATE)
        scale = example.target.max() / whole.max()
        np.testing.assert_allclose(example.target, scale * whole, atol=1e-5)
        plan = example.provenance["plan"]
        assert 4 <= plan["snr_db"] <= 6 and not plan["channel"]
        assert plan["sir_db"] is None and not plan["reverberant"]
        noise = example.input - example.target
        assert 0 < np.sum(noise**2) < np.sum(example.target**2)
        assert heard.item.targets == (entry,)
        assert heard.reference is None
    again = _clips("sr", entries, 6, snr_db=(4.0, 6.0))
    np.testing.assert_array_equal(drawn[3][0].input, again[3][0].input)
    assert len({example.provenance["plan"]["snr_db"] for example, _ in drawn}) == 6
    published = [example.provenance["plan"] for example, _ in _clips("sr", entries, 6)]
    assert any(plan["channel"] or plan["reverberant"] for plan in published)


@pytest.mark.parametrize("name", ["tse", "rtse"])
def test_the_voices_that_compete_are_those_of_the_mixture(entries, name):
    known = {entry.id: entry for entry in entries}
    for example, heard in _clips(name, entries, 3, snr_db=(0.0, 10.0)):
        told = example.provenance
        target, other = known[told["file"]], known[told["interferer"]]
        assert target.speaker != other.speaker
        assert told["plan"]["sir_db"] is not None
        enrolled, recorded = heard.reference, heard.other
        if name == "rtse":
            enrolled, recorded = recorded, enrolled
        np.testing.assert_array_equal(enrolled, example.reference)
        whole = other if name == "tse" else target
        np.testing.assert_array_equal(recorded, whole.read(RATE))
        speaker = target.speaker if name == "tse" else other.speaker
        assert known[told["enrolment"]].speaker == speaker


def test_all_tasks_that_have_an_input_can_be_asked_for():
    assert tuple(task.name for task in lm.TASKS if task.input) == TASKS


def test_events_are_asked_of_examples_as_in_training(entries):
    told = [replace(e, captions=(f"sound {i}",)) for i, e in enumerate(entries)]
    drawn = _clips("lass", told, 2)
    source = make_source("lass", told, rate=RATE, seconds=1.0)
    assert len(drawn) == 2
    np.testing.assert_array_equal(drawn[0][0].input, source[0].input)
    assert drawn[0][1].item.query == drawn[0][0].caption != ""
    assert list(tasks.columns("lass")) == ["sdr", "mel"]
    with pytest.raises(UserError, match="leave it out for task lass"):
        _clips("lass", told, 2, snr_db=(0.0, 10.0))


def test_a_converted_voice_is_compared_with_its_reference_and_with_the_one_before(entries):
    known = {entry.id: entry for entry in entries}
    for example, heard in _clips("vc", entries, 3):
        told = example.provenance
        assert told["file"] == heard.item.id != told["reference"]
        assert known[told["reference"]].speaker == known[told["file"]].speaker
        np.testing.assert_array_equal(heard.reference, example.reference)
        np.testing.assert_array_equal(heard.other, example.input)
        assert stoi(example.target, example.input, RATE) < 0.95
        assert heard.item.targets == (known[told["file"]],)


def test_an_echo_is_compared_with_the_near_end_alone(entries):
    for example, heard in _clips("aec", entries, 3):
        assert len(example.reference) == len(example.input)
        assert np.abs(example.input - example.target).max() > 0.01
        assert heard.reference is None and heard.other is None


def _is_cut_of(voice: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a second of `voice` is found in the recording, at whatever level."""
    part = voice[:RATE]
    products = correlate(whole, part, "valid")
    energy = correlate(np.square(whole), np.ones(RATE, np.float32), "valid")
    alike = products / np.sqrt(np.maximum(energy, 1e-6) * np.sum(np.square(part)))
    return alike.max() > 0.999


def test_separation_is_asked_of_two_voices_and_nothing_else(entries):
    known = {entry.id: entry for entry in entries}
    for example, heard in _clips("ss", entries, 6):
        told = example.provenance
        one, two = heard.targets
        np.testing.assert_allclose(one + two, heard.input, atol=1e-6)
        speakers = {known[told["file"]].speaker, known[told["interferer"]].speaker}
        assert told["file"] == heard.item.id and len(speakers) == 2
        for voice, name in ((one, "file"), (two, "interferer")):
            assert _is_cut_of(voice, known[told[name]].read(RATE))
        assert -6 < told["plan"]["sir_db"] < 6
    assert "si_sdr_gain" in tasks.columns("ss")
    nobody = replace(entries[0], speaker="")
    assert {heard.item.id for _, heard in _clips("ss", [nobody, *entries[1:]], 9)} == {
        entry.id for entry in entries[1:]
    }
    alone = [replace(entry, speaker="one") for entry in entries]
    with pytest.raises(UserError, match="1 named speakers in split 'heldout', but it takes 2"):
        _clips("ss", alone, 2)
    with pytest.raises(UserError, match="leave it out for task ss"):
        _clips("ss", entries, 2, snr_db=(0.0, 10.0))


def test_each_row_is_measured_against_the_target(entries, every_task, light, monkeypatch):
    quark = QuarkAudio.load(every_task)
    drawn = tasks.clips("sr", entries, 3, rate=RATE, seconds=1.0, snr_db=(0.0, 0.0))

    def perfect(jobs, sampling, batch):
        for job in jobs:
            heard, _ = job.label
            yield job, heard.targets

    monkeypatch.setattr(quark, "run", perfect)
    jobs, columns = tasks.jobs(quark, "sr", drawn), partial(tasks.columns, "sr")
    results = list(tasks.results(quark, jobs, columns))
    records = [judge(result) for result in results]
    missing = missing_packages(records)
    assert [record["id"] for record in records] == [clip.id for clip in drawn]
    assert [line.partition(":")[0] for line in missing] == [
        "DNSMOS",
        "PLCMOS",
        "speaker similarity",
        "WER (en)",
        "CER (en)",
    ]
    for record, result in zip(records, results, strict=True):
        (target,), untouched = result.heard.targets, result.heard.input
        coded = quark.tokeniser.decode(quark.tokeniser.encode(target, RATE))[0][: len(target)]
        values = record["values"]
        assert values["model"]["mel"] == 0
        assert values["model"]["stoi"] == pytest.approx(1, abs=1e-6)
        assert values["input"]["mel"] == pytest.approx(mel_distance(target, untouched, RATE))
        assert values["input"]["stoi"] == pytest.approx(stoi(target, untouched, RATE))
        assert values["codec"]["mel"] == pytest.approx(mel_distance(target, coded, RATE), abs=1e-4)
        assert "mel" not in values["target"]
        assert all(len(wave) == len(target) for (wave,) in result.rows.values())


def test_a_voice_is_nearer_to_the_wanted_one(monkeypatch):
    alike = {(1, 1): 0.9, (2, 1): 0.4}
    monkeypatch.setattr(
        judging.quality, "speaker_similarity", lambda voice, wave, rate: alike[voice[0], wave[0]]
    )
    metric = tasks.columns("tse")["nearer"].value
    one, two = np.array([1]), np.array([2])
    item = Item("", ())
    assert metric(Heard(item, (), reference=one, other=two), (one,), RATE) == 1
    assert metric(Heard(item, (), reference=two, other=one), (one,), RATE) == 0
    assert metric(Heard(item, ()), (one,), RATE) is None


def test_report(entries, every_task, light, tmp_path, capsys, monkeypatch):
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "report.md"
    write_manifest(entries, manifest)
    more = ["--examples", "2", "--snr", "0", "10", "--samples", "1"]
    asked, run = [], QuarkAudio.run

    def watched(*given, **options):
        asked.append(options["sampling"])
        return run(*given, **options)

    monkeypatch.setattr(QuarkAudio, "run", watched)
    more += ["--temperature", "0.3", "--top-k", "9"]
    assert _run(every_task, manifest, "tse", out, *more) == 0
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


@pytest.mark.parametrize("name", ["ss", "vc", "aec"])
def test_tasks_of_several_voices_are_reported(name, entries, every_task, light, tmp_path):
    manifest, out = tmp_path / "clips.jsonl", tmp_path / "report.md"
    write_manifest(entries, manifest)
    assert _run(every_task, manifest, name, out, "--examples", 2, "--samples", 1) == 0
    facts = json.loads(out.with_suffix(".json").read_text())
    rows = ["input", "model", "codec", "target"]
    assert all(list(example["values"]) == rows for example in facts["examples"])
    assert not any(example["failures"] for example in facts["examples"])
    count = 2 if name == "ss" else 1
    kept = {path.stem[2:]: audio.read(path)[0] for path in (tmp_path / "report").glob("*.flac")}
    several = [f"{row}-{n}" if count == 2 else row for row in rows[1:] for n in (1, 2)[:count]]
    assert sorted(kept) == sorted(["input", *several])
    waves = {row: [kept[n] for n in several if n.startswith(row)] for row in rows[1:]}
    found = best_permutation(waves["target"], waves["model"], lambda x, y: stoi(x, y, RATE))[1]
    assert facts["examples"][0]["values"]["model"]["stoi"] == pytest.approx(found, abs=1e-3)
    page = out.with_suffix(".html").read_text()
    assert page.count("<audio") == len(kept)
    assert ("goes to the voice" in out.read_text()) == (name == "ss")


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The recordings that examples are made of, as they are made."""
    found, speech = [], tasks._speech

    def counted(name, entry, *given):
        found.append(entry.id)
        return speech(name, entry, *given)

    monkeypatch.setattr(tasks, "_speech", counted)
    return found


def test_an_interrupted_report_goes_on(entries, every_task, light, made, tmp_path, monkeypatch):
    """Its result and its samples are those of another, by processes."""
    manifest, out, whole = (tmp_path / name for name in ("clips.jsonl", "report.md", "whole.md"))
    write_manifest(entries[:3], manifest)
    judged = []

    def interrupted(result):
        judged.append(result.record["id"])
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(result)

    monkeypatch.setattr(clips, "judge", interrupted)
    assert _run(every_task, manifest, "sr", out, "--samples", 1) == 130
    assert len(out.with_suffix(".jsonl").read_text().splitlines()) == 1 and not out.exists()
    made.clear()
    assert _run(every_task, manifest, "sr", out, "--samples", 1) == 0
    assert made == judged[2:] and {judged[0], *made} == {entry.id for entry in entries[:3]}
    monkeypatch.setattr(clips, "judge", judge)  # which other processes find
    assert _run(every_task, manifest, "sr", whole, "--samples", 1, "--workers", 2) == 0
    assert out.read_bytes() == whole.read_bytes()
    # Values to rounding: after an interruption windows share other batches.
    values, same = (path.with_suffix(".json").read_text() for path in (out, whole))
    near = json.loads(same, parse_float=lambda text: pytest.approx(float(text), rel=1e-3))
    assert json.loads(values) == near
    pages = (path.with_suffix(".html").read_text() for path in (out, whole))
    players, same = (re.findall(r"data:audio[^\"']+", page) for page in pages)
    assert players == same and players


def test_samples_are_those_of_the_records(entries, every_task, light, made, tmp_path):
    """What is done is made again where its sample is wanted and is missing, or is of others."""
    manifest, folder = tmp_path / "clips.jsonl", tmp_path / "report"
    write_manifest(entries[:2], manifest)
    report = partial(_run, every_task, manifest, "sr", tmp_path / "report.md")
    assert report() == 0 and len(made) == 2 and not folder.exists()
    assert report("--samples", 1) == 0 and made[2:] == made[:1]
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(kept) == 5
    assert report("--samples", 1) == 0 and len(made) == 3
    assert report("--samples", 1, "--temperature", 2) == 0 and len(made) == 5
    assert (folder / "0-model.flac").read_bytes() != kept["0-model.flac"]
    assert report("--samples", 1) == 0 and made[5:] == made[:1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


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

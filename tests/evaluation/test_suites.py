"""`quark eval suite` on small test sets in their real layouts, with small models."""

import json
from pathlib import Path

import numpy as np
import pytest

from quark_jax import audio
from quark_jax.cli import main
from quark_jax.evaluation import codec, judging, sdr, si_sdr
from quark_jax.evaluation.suites import SUITES, suite
from quark_jax.hcodec import Tokeniser

HEAVY = ("speechmos", "resemblyzer", "jiwer", "visqol", "pesq")
LASS = "audiocaps-lass"


@pytest.fixture
def light(leave_out):
    leave_out(HEAVY)


@pytest.fixture
def run(small_run, every_task, tmp_path):
    """run(suite, data, *options): its exit code; the report is tmp_path/report.md."""

    def command(name: str, data: Path, *more, model: Path | None = None) -> int:
        own = small_run / "codec/model" if SUITES[name].kind.startswith("codec") else every_task
        given = ["--model", model or own, "--data", data, "--out", tmp_path / "report.md"]
        return main(["eval", "suite", name, *map(str, given), "--workers", "1", *map(str, more)])

    return command


def _records(folder: Path) -> list[dict]:
    return [json.loads(line)["record"] for line in (folder / "report.jsonl").open()]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_from_end_to_end(name, run, test_set, light, tmp_path, capsys):
    data, ids = test_set(name)
    assert run(name, data) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"# {suite(name).title}: ") and text in capsys.readouterr().out
    records = _records(tmp_path)
    assert [record["id"] for record in records] == ids
    assert f"\n{len(ids)} clips, " in text
    ours = "H-Codec small" if suite(name).kind.startswith("codec") else "model"
    for record in records:
        found = [value for value in record["values"][ours].values() if value is not None]
        assert found or suite(name).kind == "vc"  # all of its metrics are of missing packages
        assert not record["failures"]
    for each in suite(name).published:
        [row] = [line for line in text.splitlines() if line.startswith(f"| {each.system} |")]
        assert each.source in row
    page = (tmp_path / "report.html").read_text()
    assert suite(name).title in page
    rows = {line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")}
    assert ("`codec` is" in text) == ("| codec" in rows)
    if name.startswith("dns"):
        assert "clean_fileid_7.wav is missing" in text
    if name == "audioset-eval":
        assert "unlisted-id.flac: is not in " in text


def test_a_codec_is_measured_as_it_codes(run, test_set, light, small_run, tmp_path):
    data, _ = test_set("librispeech-test-clean")
    assert run("librispeech-test-clean", data) == 0
    tokeniser = Tokeniser.load(small_run / "codec/model/codec")
    config, sent = tokeniser.config, []
    for record in _records(tmp_path):
        path = data / "LibriSpeech/test-clean" / record["id"]
        wave, rate = audio.read(path)
        file = tokeniser.encode(wave, rate)
        values = record["values"]["H-Codec small"]
        expected = si_sdr(wave, tokeniser.decode(file)[0])
        assert values["si_sdr"] == pytest.approx(expected, abs=1e-3)
        assert values["frame_rate"] == pytest.approx(config.frame_rate, rel=0.05)
        sent.append(np.asarray(file.codes.acoustic)[0, 1])
    counts = np.bincount(np.concatenate(sent), minlength=config.quantiser.codebook_size)
    shares = counts[counts > 0] / counts.sum()
    facts = json.loads((tmp_path / "report.json").read_text())
    used = facts["codebooks"]["acoustic 2"]
    assert used["in_use"] == (counts > 0).mean()
    assert used["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    text = (tmp_path / "report.md").read_text()
    assert f"| acoustic 2 | {used['in_use']:.1%} | {used['perplexity']:.1f} |" in text
    published = "| H-Codec 1.0 | 2000 | 25 | 0.94 | 2.99 | 0.84 | 0.0318 | 4 | 4.06 |"
    assert published in text
    stoi = facts["means"]["H-Codec small"]["stoi"]
    [row] = [line for line in text.splitlines() if line.endswith("| here |")]
    assert f" | {stoi:.3f} | " in row


def test_separated_voices_are_those_of_the_files(run, test_set, light, tmp_path):
    data, _ = test_set("wsj0-2mix")
    assert run("wsj0-2mix", data) == 0
    place = data / "2speakers/wav8k/min/tt"
    for record in _records(tmp_path):
        mixture, *voices = (
            audio.read(place / part / f"{record['id']}.wav")[0] for part in ("mix", "s1", "s2")
        )
        untouched = np.mean([si_sdr(voice, mixture) for voice in voices])
        values = record["values"]
        assert values["input"]["si_sdr"] == pytest.approx(untouched, abs=1e-4)
        assert values["input"]["si_sdr_gain"] == 0
        gain = values["model"]["si_sdr"] - untouched
        assert values["model"]["si_sdr_gain"] == pytest.approx(gain, abs=1e-3)


def test_a_converted_voice_is_compared_with_the_one_to_take(
    run, test_set, light, tmp_path, voices, monkeypatch
):
    asked = []

    def similarity(voice, wave, rate):
        asked.append(voice)
        return float(len(asked))

    monkeypatch.setattr(judging.quality, "speaker_similarity", similarity)
    data, _ = test_set("vctk-vc")
    assert run("vctk-vc", data, "--clips", "1", "--seed", "1") == 0
    [record] = _records(tmp_path)
    spoken, taken = {"p225_001": (0, 2), "p225_002": (1, 2), "s5_003": (2, 1)}[
        Path(record["id"].partition("_mic1")[0]).name
    ]
    # Similarity to the voice; whether it is nearer to that one than to the speaker's own.
    for voice, place in zip(asked, (taken, taken, spoken) * 2, strict=True):
        np.testing.assert_allclose(voice, voices[place], atol=1e-4)
    assert record["values"] == {
        "input": {"similarity": 1, "nearer": 0},
        "model": {"similarity": 4, "nearer": 0},
    }


def test_an_interrupted_run_goes_on(run, test_set, light, tmp_path, monkeypatch, capsys):
    data, ids = test_set("librispeech-test-clean")
    name, journal = "librispeech-test-clean", tmp_path / "report.jsonl"
    assert run(name, data) == 0
    whole = [(tmp_path / f"report.{suffix}").read_bytes() for suffix in ("md", "json", "html")]
    journal.unlink()
    code, calls = codec.code, []

    def interrupted(*given):
        calls.append(len(_records(tmp_path)))  # those of all clips before are on disk
        if len(calls) == 3:
            raise KeyboardInterrupt
        return code(*given)

    monkeypatch.setattr(codec, "code", interrupted)
    assert run(name, data) == 130
    assert calls == [0, 1, 2]
    with journal.open("a") as file:
        file.write('{"key": "torn')
    assert run(name, data) == 0
    assert calls == [0, 1, 2, 2]
    assert "2 of 3 clips are done" in capsys.readouterr().out
    again = [(tmp_path / f"report.{suffix}").read_bytes() for suffix in ("md", "json", "html")]
    assert again == whole and [record["id"] for record in _records(tmp_path)] == ids
    assert run(name, data) == 0 and len(calls) == 4


def test_other_options_are_not_mixed_up(run, test_set, light, tmp_path):
    data, ids = test_set(LASS)
    assert run(LASS, data, "--clips", 1) == 0
    assert len(_records(tmp_path)) == 1
    assert run(LASS, data) == 0  # the one that is there counts
    assert sorted(record["id"] for record in _records(tmp_path)) == ids
    assert run(LASS, data, "--seed", 1) == 0
    assert len(_records(tmp_path)) == 4


def test_processes_find_what_one_does(run, test_set, tmp_path):
    data, _ = test_set(LASS)
    assert run(LASS, data) == 0
    alone = _records(tmp_path)
    (tmp_path / "report.jsonl").unlink()
    assert run(LASS, data, "--workers", 2) == 0
    assert _records(tmp_path) == alone
    place = data / "evaluation/data/audiocaps"
    for record in alone:
        waves = [audio.read(place / f"{p}-{record['id']}.wav")[0] for p in ("segment", "mixture")]
        assert record["values"]["input"]["sdr"] == pytest.approx(sdr(*waves), abs=1e-3)


def test_clips_of_one_name_are_refused(run, test_set, tmp_path, capsys):
    data, _ = test_set(LASS)
    with (data / "evaluation/metadata/audiocaps_eval.csv").open("a") as file:
        file.write("1,rain,Rain,a.wav,b.wav\n")
    assert run(LASS, data) == 2
    assert "two clips are called '1'" in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
def test_missing_data_is_one_line_with_the_layout(name, run, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    assert run(name, tmp_path / "data") == 2
    [line] = capsys.readouterr().err.splitlines()
    first = suite(name).places[0]
    assert str(tmp_path / "data" / first) in line and suite(name).layout in line
    (tmp_path / "data" / first).mkdir(parents=True)
    assert run(name, tmp_path / "data") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "data" / first) in line
    assert not list(tmp_path.glob("report*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--data", ".", "--out", "a.md"], "choose one of librispeech-test-clean, "),
        (["vctk", "--out", "a.md"], "--data is missing"),
        (["vctk", "--data", "."], "--out is missing"),
        (["vctk", "--data", ".", "--out", "a.txt"], "end it in .md"),
        (["vctk-vc", "--data", ".", "--out", "a.md", "--threshold", "1"], "not of a codec"),
        (["vctk", "--data", ".", "--out", "a.md", "--clap", "."], "has no descriptions"),
    ],
)
def test_bad_usage_is_one_line(arguments, message, capsys):
    assert main(["eval", "suite", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_suites_are_listed(capsys):
    assert main(["eval", "suite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(SUITES)
    assert any("ROOT/LibriSpeech/test-clean has SPEAKER/CHAPTER/" in line for line in lines)


def test_embeddings_on_the_command_line(tmp_path, capsys):
    for name, shift in (("one", 0.0), ("other", 2.0)):
        items = np.random.default_rng(0).standard_normal((50, 4)) + shift
        np.save(tmp_path / f"{name}.npy", items)
    assert main(["eval", "fad", str(tmp_path / "one.npy"), str(tmp_path / "other.npy")]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(16)  # 4 channels, 2^2 each
    assert main(["eval", "fad", str(tmp_path / "one.npy"), str(tmp_path / "none.npy")]) == 2

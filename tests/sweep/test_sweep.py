"""`quark sweep` on a fixed and a dynamic codec at toy size: all stages, with real training."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import open_tokenised, read_manifest, samples_manifest
from data_pipelines.alignments import Word, write_ctm
from quark_jax.cli import main
from quark_jax.errors import UserError
from quark_jax.evaluation import stoi
from quark_jax.hcodec import Tokeniser
from quark_jax.sweep import stages
from quark_jax.training import codec as codec_training
from quark_jax.training import lm as lm_training
from quark_jax.training.metrics import read_metrics

SMALL = Path(__file__).with_name("small.py")
SWEEP = runpy.run_path(str(SMALL))["SWEEP"]


def command(workdir: Path, *more: str) -> list[str]:
    alignments = f"--config.alignments={workdir.parent / 'words.ctm'}"
    return ["sweep", "--config", str(SMALL), "--workdir", str(workdir), alignments, *more]


def run(workdir: Path, *more: str) -> int:
    try:
        return main(command(workdir, *more))
    except SystemExit as exit:
        return exit.code


def record(workdir: Path, name: str) -> dict:
    return json.loads((workdir / "points" / name / "record.json").read_text())


def heldout():
    return [entry for entry in read_manifest(samples_manifest()) if entry.split == "heldout"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """The workdir of a sweep that was made in four calls, and what each told: the share of another
    machine, all while a language model cannot be trained, the rest, and nothing."""
    folder = tmp_path_factory.mktemp("sweep")
    words = [Word("one", 0.3, 0.8), Word("two", 0.9, 1.5)]
    write_ctm({entry.id: words for entry in heldout()[:3]}, folder / "words.ctm")
    workdir, told = folder / "sweep", SimpleNamespace(workdir=folder / "sweep", trained=[])

    def refuse(config, workdir):
        raise UserError("the loss is not finite")

    codec_train, lm_train = codec_training.train, lm_training.train

    def count(train):
        def counted(config, workdir):
            told.trained.append("/".join(Path(workdir).parts[-2:]))
            return train(config, workdir)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_training, "train", count(codec_train))
        patch.setattr(lm_training, "train", count(lm_train))
        told.share = run(workdir, "--index", "1", "--of", "2")
        told.alone = [path.parent.name for path in workdir.rglob("record.json")]
        told.reports = list(workdir.glob("report.*"))
        patch.setattr(lm_training, "train", refuse)
        told.failing = run(workdir)
        told.report_of_failing = (workdir / "report.md").read_text()
        patch.setattr(lm_training, "train", count(lm_train))
        told.rest = run(workdir)
        told.before = {p: p.stat().st_mtime_ns for p in workdir.rglob("record.json")}
        told.again = run(workdir)
    return told


def test_shares_failures_and_what_is_done(made):
    """Each is trained once: what a call found done it left, and what failed came when it could."""
    assert (made.share, made.alone, made.reports) == (0, ["dynamic"], [])
    assert made.failing == 1
    assert "- fixed: failed: the loss is not finite" in made.report_of_failing
    assert "\n| dynamic | " in made.report_of_failing
    assert (made.rest, made.again) == (0, 0)
    assert made.trained == ["small-dynamic/run", "dynamic/lm", "small/run", "fixed/lm"]
    assert made.before == {p: p.stat().st_mtime_ns for p in made.before}
    assert not list(made.workdir.rglob("failure.json"))


def test_records_are_what_the_parts_say(made):
    for name in ("fixed", "dynamic"):
        point, found = made.workdir / "points" / name, record(made.workdir, name)
        dataset = open_tokenised(point / "tokens")
        records = [dataset.records("heldout")[i] for i in range(8)]
        codes = sum(item["acoustic"].size + item["semantic"].size for item in records)
        assert found["tokens"] == pytest.approx(codes / (8 * 0.48))
        rows = read_metrics(point / "lm")
        assert found["lm"]["nats_per_code"] == rows[-1]["heldout/nats_per_code"]
        per_second = rows[-1]["heldout/nats_per_code"] * codes / (8 * 0.48)
        assert found["lm"]["nats_per_second"] == pytest.approx(per_second)
        used = [len(set(np.concatenate([r["semantic"][0] for r in records]).tolist())) / 32]
        assert found["codebooks"]["semantic"]["use"][:1] == pytest.approx(used)
    assert record(made.workdir, "fixed")["tokens"] == 25 * 2 * 2
    assert record(made.workdir, "fixed")["segments"] is None


def test_the_dynamic_point_has_its_threshold(made):
    """Whatever reads the codec of the point, its dataset too, has segments by that threshold."""
    point, found = made.workdir / "points" / "dynamic", record(made.workdir, "dynamic")
    tokeniser = Tokeniser.load(point / "codec")
    trained = Tokeniser.load(made.workdir / "codecs" / "small-dynamic" / "run" / "model" / "codec")
    assert (tokeniser.config.dynamic.threshold, trained.config.dynamic.threshold) == (0.9, 0.6)
    assert tokeniser.weights_hash == trained.weights_hash
    entries = {entry.id: entry for entry in heldout()}
    for clip in found["clips"]:
        wave = entries[clip["id"]].read(16000)
        file = trained.encode(wave, 16000, threshold=0.9)
        values = clip["values"]["dynamic"]
        groups = file.codes.lengths.size
        assert values["frame_rate"] == pytest.approx(groups / clip["seconds"])
        assert values["bitrate"] == pytest.approx(groups * (2 * 2 * 5 + 3) / clip["seconds"])
        judged = stoi(wave, trained.decode(file)[0], 16000)
        assert values["stoi"] == pytest.approx(judged, abs=1e-4)
    records = open_tokenised(point / "tokens").records("heldout")
    lengths = np.concatenate([records[index]["segments"] for index in range(8)])
    assert found["segments"] == [int(np.sum(lengths == n)) for n in range(1, 9)]
    places = found["words"]["places"]
    assert found["words"]["recordings"] == 2
    assert places["word starts"]["seconds"] == pytest.approx(2 * 2 * 0.06)
    assert places["inside words"]["seconds"] == pytest.approx(2 * (1.1 - 4 * 0.06))


def test_the_report_says_what_the_records_say(made):
    text = (made.workdir / "report.md").read_text()
    facts = json.loads((made.workdir / "report.json").read_text())
    page = (made.workdir / "report.html").read_text()
    for name in ("fixed", "dynamic"):
        found = record(made.workdir, name)
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {name} | ")]
        codecs, codes = rows[:2]
        seconds = [clip["seconds"] for clip in found["clips"]]
        values = [clip["values"][name] for clip in found["clips"]]
        rate = np.average([value["frame_rate"] for value in values], weights=seconds)
        assert codecs[2] == f"{rate:.2f}"
        assert codecs[3].startswith(f"{np.mean([value['stoi'] for value in values]):.3f} (")
        assert codes[5:8] == [
            f"{found['tokens']:.1f}",
            f"{found['lm']['nats_per_code']:.3f}",
            f"{found['lm']['nats_per_second']:.1f}",
        ]
        assert facts["points"][name]["means"]["frame_rate"] == pytest.approx(rate)
    place = record(made.workdir, "dynamic")["words"]["places"]["silence"]
    [words] = [line for line in text.split("## Where")[1].splitlines() if "| dynamic |" in line]
    assert words.split(" | ")[4] == f"{place['frames'] / place['seconds']:.2f}"
    for plot in ("metrics", "language", "segments", "words"):
        assert (made.workdir / f"{plot}.png").stat().st_size > 5000
        assert f"({plot}.png)" in text
    assert page.count('src="data:image/png;base64,') == 4 and "Clip by clip" in page


def test_the_report_alone(made, capsys):
    before = (made.workdir / "report.md").read_text()
    (made.workdir / "report.md").unlink()
    assert run(made.workdir, "--report") == 0
    assert (made.workdir / "report.md").read_text() == before
    moved = made.workdir / "points" / "fixed"
    try:
        moved.rename(made.workdir / "aside")
        assert run(made.workdir, "--report") == 1
        assert "point fixed: not done" in capsys.readouterr().err
        assert "- fixed: not done" in (made.workdir / "report.md").read_text()
    finally:
        (made.workdir / "aside").rename(moved)
    assert run(made.workdir, "--report") == 0  # of all points again, for the other tests


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--config.lm.run.steps=5"], "points/fixed: was begun with another lm.run.steps"),
        (["--config.codec.run.steps=5"], "codecs/small: was begun with another codec.run.steps"),
        (["--config.tokens.train=16"], "tokens.train"),
        (["--config.manifest=nowhere.jsonl"], "nowhere.jsonl"),
        (["--config.manifest="], "manifest: not set"),
        (["--config.tokens.seconds=0.5"], "12.5 frames of codec small"),
        (["--config.tokens.heldout=6"], "multiple of lm.data.batch_size"),
        (["--config.lm.data.codec=x"], "lm.data.codec: the sweep sets it"),
        (["--config.listening.words=0"], "words 0"),
        (["--config.listening.metrics=('stoi', 'snr')"], "'snr' is unknown"),
        (["--config.title=x", "--index", "0"], "--index and --of go together"),
        (["--index", "2", "--of", "2"], "numbered from 0"),
        (["--report", "--index", "0", "--of", "2"], "--report"),
        (["--config.nothing=1"], "no field 'nothing'"),
        (["--nothing"], "nothing"),
    ],
)
def test_another_config_is_refused(made, capsys, change, named):
    before = {p: p.stat().st_mtime_ns for p in made.workdir.rglob("*")}
    assert run(made.workdir, *change) == 2
    said = capsys.readouterr()
    assert named in said.err and said.err.count("\n") == 1 and said.out == ""
    assert before == {p: p.stat().st_mtime_ns for p in made.workdir.rglob("*") if p in before}


def test_a_workdir_where_nothing_is_done_has_no_report(tmp_path, capsys):
    assert run(tmp_path, "--report") == 2
    assert "no point is done (fixed: not done; dynamic: not done)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"points": ()}, "points: there are none"),
        ({"points": (replace(SWEEP.points[0], name="a/b"),)}, "'a/b' cannot name a folder"),
        ({"points": SWEEP.points[:1] * 2}, "'fixed' occurs 2 times"),
        ({"points": (replace(SWEEP.points[0], codec="x"),)}, "point fixed: codec 'x' is unknown"),
        ({"points": (replace(SWEEP.points[0], threshold=0.5),)}, "has a fixed frame rate"),
        ({"points": (replace(SWEEP.points[1], rate=10.0),), "series": {}}, "give a threshold, or"),
        ({"points": (replace(SWEEP.points[1], threshold=1.5),)}, "choose one of -1 to 1"),
        (
            {"points": (replace(SWEEP.points[1], threshold=None, rate=3.0),)},
            "has 3.125 to 25 segments/s",
        ),
        ({"series": {"line": ("nothing",)}}, "series 'line': there is no point nothing"),
        (
            {"codecs": (replace(SWEEP.codecs[0], semantic_codebooks=1), SWEEP.codecs[1])},
            "semantic_codebooks",
        ),
    ],
)
def test_what_a_sweep_cannot_be(change, named):
    with pytest.raises(UserError, match=named.replace("(", r"\(")):
        replace(SWEEP, **change)


def test_a_threshold_is_chosen_for_a_rate():
    """Neighbouring frames are alike by 0.30, 0.31, ... 0.69 in turn, so that a threshold of x lets
    100 (x - 0.3) of 40 begin a segment."""
    alike = 0.3 + np.arange(2000) % 40 / 100

    def encode(wave, rate, threshold):
        count = np.count_nonzero(alike[: len(wave)] <= threshold)
        return SimpleNamespace(codes=SimpleNamespace(lengths=np.ones((1, count))))

    codec = SimpleNamespace(config=SimpleNamespace(sample_rate=40), encode=encode)
    waves = [np.zeros(400), np.zeros(1200)]
    for rate in (1, 10, 25, 40):
        threshold = stages.threshold_for(codec, waves, float(rate))
        assert encode(waves[1], 40, threshold).codes.lengths.size == 30 * rate
    assert encode(waves[1], 40, stages.threshold_for(codec, waves, 9.7)).codes.lengths.size == 300

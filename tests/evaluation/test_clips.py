"""Records of clips that any report is made of."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from quark_jax.evaluation import clips
from quark_jax.evaluation.clips import Result, evaluate, key_of
from quark_jax.evaluation.judging import Heard
from quark_jax.evaluation.readers import Item
from quark_jax.evaluation.report import Metric


@dataclass(frozen=True)
class Numbered:
    id: str
    value: float = 1.0


def _loudest(heard: Heard, waves, rate: int) -> float:
    return float(waves[0].max())


def _columns() -> dict[str, Metric]:
    return {
        "peak": Metric("peak", 1, _loudest),
        "level": Metric("level", 1, _loudest, needs_reference=False),
    }


def _result(clip: Numbered) -> Result:
    wave = np.full(9, clip.value, np.float32)
    record = {"id": clip.id, "seconds": 1.0, "values": {"x": {"bitrate": 1}}}
    rows = {clips.ORIGINAL: (wave,), "x": (2 * wave,)}
    return Result(_columns, record, Heard(Item(clip.id, ()), (wave,)), rows, 16_000)


def test_records_are_those_of_the_clips_however_often_it_is_asked(tmp_path):
    asked = [Numbered(name, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    made = []

    def results(todo, last="c"):
        for clip in todo:
            made.append(clip.id)
            if clip.id == last:
                raise KeyboardInterrupt
            yield _result(clip)

    report = partial(evaluate, tmp_path / "r.md", "key", workers=1)
    with pytest.raises(KeyboardInterrupt):
        report(asked, results)
    records = report(asked, partial(results, last=None))
    assert made == ["a", "b", "c", "c"]
    assert [record["id"] for record in records] == ["a", "b", "c"]
    assert records[1]["values"] == {
        "original": {"level": 2.0},
        "x": {"bitrate": 1, "peak": 4.0, "level": 4.0},
    }
    assert report(asked[1:], results) == records[1:] and len(made) == 4
    # Whatever else belongs to a record is made again with it.
    again = report(asked, partial(results, last=None), whole=lambda clip, record: clip.id != "b")
    assert made[4:] == ["b"] and again == records


def test_a_key_is_of_options_packages_and_files(tmp_path, monkeypatch):
    model, manifest = tmp_path / "model", tmp_path / "m.jsonl"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    manifest.write_text("one")
    keys = [key_of(model, manifest, seed=0), key_of(model, manifest, None, seed=0)]
    assert keys[0] == keys[1]
    keys.append(key_of(model, manifest, seed=1))
    manifest.write_text("two")
    keys.append(key_of(model, manifest, seed=0))
    (model / "weights").write_bytes(b"2")
    keys.append(key_of(model, manifest, seed=0))
    monkeypatch.setattr(clips, "version", lambda package: "99")
    keys.append(key_of(model, manifest, seed=0))
    assert len(set(keys)) == 5

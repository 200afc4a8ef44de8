"""Reading parts of recordings, and random cuts: slices of the whole, the same in any process."""

import errno
import os
import resource

import numpy as np
import pytest
import soundfile
from etils import epath

from data_pipelines import Entry
from data_pipelines.cuts import Cutter
from data_pipelines.manifests import Unreachable
from data_pipelines.simulation import fit
from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000


def noise(samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
    return wave.astype(np.float32)


FORMATS = {
    "a.flac": ("PCM_16", 1),
    "b.flac": ("PCM_24", 2),
    "c.wav": ("PCM_16", 2),
    "d.wav": ("FLOAT", 1),
    "e.wav": ("ULAW", 1),
    "f.ogg": ("VORBIS", 2),
    "g.ogg": ("OPUS", 1),
    "h.mp3": ("MPEG_LAYER_III", 1),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_a_part_is_a_slice_of_the_whole(tmp_path, name, rate):
    subtype, channels = FORMATS[name]
    soundfile.write(tmp_path / name, noise(3 * RATE, channels=channels), RATE, subtype=subtype)
    for entry in (
        Entry(tmp_path / name, name),
        Entry(tmp_path / name, name, rate=RATE, start=1234, frames=20_000),
        Entry(tmp_path / name, name, rate=RATE, start=4321),
    ):
        whole = entry.read(rate)
        for start, samples in ((0, 100), (777, 16_000), (0, len(whole)), (len(whole) - 5, 50)):
            part = entry.read(rate, start=start, samples=samples)
            assert part.dtype == np.float32
            assert np.array_equal(part, whole[start : start + samples])
        length = entry.length(rate)
        alone = rate == RATE and subtype.startswith(("PCM", "FLOAT"))
        assert length == (len(whole) if alone else None)


def test_a_part_alone_is_decoded(tmp_path, monkeypatch):
    audio.write(tmp_path / "a.flac", noise(RATE)[:, 0], RATE)
    entry = Entry(tmp_path / "a.flac", "a")
    whole = entry.read(RATE)
    monkeypatch.setattr(audio, "read", None)
    assert np.array_equal(entry.read(RATE, start=100, samples=50), whole[100:150])


def damaged(path) -> Entry:
    """A flac file of 20 s whose second half is cut off."""
    audio.write(path, noise(20 * RATE)[:, 0], RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return Entry(path, path.name)


def test_damage_is_named_by_the_part_that_meets_it(tmp_path):
    entry = damaged(tmp_path / "a.flac")
    assert len(entry.read(RATE, start=RATE, samples=RATE)) == RATE
    with pytest.raises(UserError, match=r"a\.flac: "):
        entry.read(RATE, start=15 * RATE, samples=RATE)


def test_a_section_beyond_the_end_is_named(tmp_path):
    audio.write(tmp_path / "a.flac", noise(RATE)[:, 0], RATE)
    for entry in (
        Entry(tmp_path / "a.flac", "a", start=RATE),
        Entry(tmp_path / "a.flac", "a", start=RATE - 10, frames=20),
        Entry(tmp_path / "a.flac", "a", rate=8000, start=10),
    ):
        with pytest.raises(UserError, match=r"a\.flac: .*correct the manifest"):
            entry.read(RATE, start=0, samples=20)


@pytest.fixture
def recordings(tmp_path) -> list[Entry]:
    """Long, short, at another rate, nearly all silent; half damaged, silent, and not there."""
    sparse = np.zeros(30 * RATE, np.float32)
    sparse[17 * RATE : 17 * RATE + 100] = 0.5
    waves = {"long": noise(9 * RATE)[:, 0], "short": noise(RATE // 3, 1)[:, 0], "sparse": sparse}
    for name, wave in waves.items():
        audio.write(tmp_path / f"{name}.flac", wave, RATE)
    audio.write(tmp_path / "other.wav", noise(4 * 22_050, 2)[:, 0], 22_050)
    audio.write(tmp_path / "silent.flac", np.zeros(RATE, np.float32), RATE)
    damaged(tmp_path / "damaged.flac")
    names = ("damaged.flac", "long.flac", "silent.flac", "short.flac", "other.wav", "sparse.flac")
    return [Entry(tmp_path / name, name) for name in (*names, "missing.flac")]


def cut(cutter: Cutter, index: int):
    return cutter.random(index, np.random.default_rng(index))


def test_a_cut_is_a_slice_of_its_recording(recordings):
    cutter = Cutter(recordings, rate=RATE, samples=RATE)
    met = set()
    for index in range(40):
        wave, entry, start = cut(cutter, index)
        met.add(entry.id)
        assert np.abs(wave).max() > 1e-3
        if entry.id == "short.flac":
            assert start == 0 and np.array_equal(wave, np.resize(entry.read(RATE), RATE))
        elif entry.id == "damaged.flac":
            assert start < 11 * RATE
        else:
            assert np.array_equal(wave, entry.read(RATE)[start : start + RATE])
    assert met == {"damaged.flac", "long.flac", "short.flac", "other.wav", "sparse.flac"}
    skipped = {entry.id: reason for entry, reason in cutter.skipped.items()}
    assert set(skipped) == {"damaged.flac", "silent.flac", "missing.flac"}
    assert skipped["silent.flac"] == "silent" and "no such file" in skipped["missing.flac"]


def test_a_cut_does_not_depend_on_what_was_cut_before(recordings):
    cutter = Cutter(recordings, rate=RATE, samples=RATE)
    forward = [cut(cutter, index) for index in range(40)]
    again = [cut(cutter, index) for index in range(40)]
    alone = [cut(Cutter(recordings, rate=RATE, samples=RATE), index) for index in range(40)]
    for one, two, three in zip(forward, again, alone, strict=True):
        assert one[1:] == two[1:] == three[1:]
        assert np.array_equal(one[0], two[0]) and np.array_equal(one[0], three[0])


def test_a_short_recording_is_given_once_or_wrapped_round(recordings):
    cutter = Cutter(recordings, rate=RATE, samples=RATE)
    for index in range(12):
        wave, entry, start = cut(cutter, index)
        part, *same = cutter.random_part(index, np.random.default_rng(index))
        assert same == [entry, start] and np.array_equal(wave, fit(part, RATE))
        assert np.array_equal(part, entry.read(RATE)[start : start + RATE])


def test_what_may_be_there_again_is_not_passed_over(bucket, tmp_path, monkeypatch):
    audio.write(tmp_path / "here.flac", noise(2 * RATE)[:, 0], RATE)
    bucket.pipe("gs://b/a.flac", (tmp_path / "here.flac").read_bytes())
    entries = [
        Entry(epath.Path("gs://b/a.flac"), "a"),
        Entry(epath.Path("gs://b/none.flac"), "none"),
        Entry(tmp_path / "here.flac", "here"),
    ]
    opened, failures = bucket.open, []

    def flaky(path, mode):
        if failures:
            failures.pop()
            raise TimeoutError("no answer")
        return opened(path, mode)

    monkeypatch.setattr(bucket, "open", flaky)
    cutter = Cutter(entries, rate=RATE, samples=RATE)
    for take in (cutter.read, lambda entry: cut(cutter, 0)):
        failures[:] = [1, 1, 1]
        with pytest.raises(Unreachable, match=r"a\.flac: cannot be fetched \(no answer\)"):
            take(entries[0])
    assert not cutter.skipped
    failures[:] = [1, 1]  # the third time it answers
    assert cut(cutter, 0)[1] is entries[0]
    assert cut(cutter, 1)[1] is entries[2]  # what is not there is passed over, as ever
    assert set(cutter.skipped) == {entries[1]}


def test_a_want_of_open_files_is_not_a_damaged_recording(recordings):
    cutter = Cutter(recordings, rate=RATE, samples=RATE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        with pytest.raises(Unreachable, match=os.strerror(errno.EMFILE)):
            cutter.read(recordings[1])
        with pytest.raises(Unreachable, match=r"long\.flac: cannot be read"):
            cut(cutter, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not cutter.skipped
    assert cut(cutter, 1)[1] is recordings[1]

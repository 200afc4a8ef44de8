"""Audio files: every format comes back, every bad file is refused by name."""

import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from quark_jax import audio
from quark_jax.errors import UserError

RATE = 16_000


def _tone(samples: int, rate: int = RATE) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)).astype(np.float32)


def _wav(path, announced: int, samples: int, rate: int = RATE) -> None:
    """A 16-bit wav file whose header announces another number of bytes than it holds."""
    data = (_tone(samples) * 32767).astype("<i2").tobytes()
    header = b"RIFF" + struct.pack("<I", min(announced + 36, 0xFFFFFFFF)) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    path.write_bytes(header + b"data" + struct.pack("<I", announced) + data)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_written_files_come_back(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    wave = _tone(RATE)
    audio.write(path, wave, RATE)
    assert audio.info(path) == audio.AudioInfo(RATE, 1, RATE)
    assert audio.info(path).seconds == 1.0
    back, rate = audio.read(path)
    assert (back.dtype, back.shape, rate) == (np.float32, wave.shape, RATE)
    error = np.abs(back - wave)
    if suffix.lower() in (".wav", ".flac"):
        assert error.max() <= 1 / 32768
    else:
        assert np.sqrt(np.mean(error[800:-800] ** 2)) < 0.01
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_mono_by_mean_or_first_channel(tmp_path):
    left, right = _tone(1000), np.zeros(1000, np.float32)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "s.wav", mono="first")[0], left)
    np.testing.assert_array_equal(audio.read(tmp_path / "s.wav")[0], left / 2)
    with pytest.raises(ValueError, match="mono"):
        audio.read(tmp_path / "s.wav", mono="right")


def test_rate_on_reading_is_soxr_hq(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    soundfile.write(tmp_path / "n.wav", noise, 48_000, subtype="FLOAT")
    wave, rate = audio.read(tmp_path / "n.wav", rate=RATE)
    assert rate == RATE
    np.testing.assert_array_equal(wave, soxr.resample(noise, 48_000, RATE, quality="HQ"))
    np.testing.assert_array_equal(wave, audio.resample(noise, 48_000, RATE))


@pytest.mark.parametrize("rate", [0, -16_000])
def test_a_rate_that_is_not_positive_is_refused(tmp_path, rate):
    path = tmp_path / "a.wav"
    audio.write(path, _tone(1000), RATE)
    for read in (audio.read, lambda *a, **k: list(audio.read_blocks(*a, **k))):
        with pytest.raises(UserError, match=rf"^{path}: rate {rate}: choose one of at least 1 Hz"):
            read(path, rate=rate)


@pytest.mark.parametrize("rate", [None, 16_000, 44_100])
def test_blocks_joined_are_the_whole(tmp_path, rate):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 50_001).astype(np.float32)
    soundfile.write(tmp_path / "n.flac", noise, 24_000)
    blocks = list(audio.read_blocks(tmp_path / "n.flac", rate=rate, seconds=0.3))
    whole, _ = audio.read(tmp_path / "n.flac", rate=rate)
    assert len(blocks) > 5 and all(len(b) for b in blocks)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-7)


@pytest.mark.parametrize(("samples", "rate"), [(80, 8_000), (160, RATE), (480, 48_000)])
def test_a_hundredth_of_a_second_is_legitimate(tmp_path, samples, rate):
    audio.write(tmp_path / "a.wav", _tone(samples, rate), rate)
    assert len(audio.read(tmp_path / "a.wav", rate=RATE)[0]) == 160


def test_wav_from_a_pipe_is_legitimate(tmp_path):
    _wav(tmp_path / "pipe.wav", 0xFFFFFFFF, RATE)
    assert len(audio.read(tmp_path / "pipe.wav")[0]) == RATE


def _bad(path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("this is not audio\n" * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "header only":
        _wav(path, 0, 0)
    elif kind == "an hour":
        _wav(path, 3600 * 2 * RATE, 1000)
    elif kind == "an hour of nothing":
        _wav(path, 3600 * 2 * RATE, 0)
    elif kind == "cut":
        _wav(path, 2 * RATE, RATE - 100)
    elif kind in ("nan", "infinite"):
        wave = _tone(RATE)
        wave[123] = np.nan if kind == "nan" else np.inf
        soundfile.write(path, wave, RATE, subtype="FLOAT")
    elif kind == "rate":
        _wav(path, 2000, 1000, rate=500)
    elif kind == "one sample":
        _wav(path, 2, 1, rate=48_000)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("text", "cannot be read as audio"),
        ("empty", "is empty"),
        ("header only", "holds no samples"),
        ("an hour", "announces 115200000 bytes .* holds 2000"),
        ("an hour of nothing", "announces 115200000 bytes .* holds 0"),
        ("cut", "was cut off"),
        ("nan", r"sample 123 \(0.008 s\) is NaN or infinite"),
        ("infinite", "sample 123"),
        ("rate", "500 Hz"),
        ("one sample", "too short to resample"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, kind, words):
    path = tmp_path / "bad.wav"
    _bad(path, kind)
    with pytest.raises(UserError, match=words) as error:
        audio.read(path, rate=RATE)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_cut_compressed_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    audio.write(path, _tone(3 * RATE), RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut off|cannot be read as audio"):
        audio.read(path)


@pytest.mark.parametrize("announced", [3600 * RATE, 0])
def test_flac_that_announces_an_hour_or_nothing(tmp_path, announced):
    path = tmp_path / "a.flac"
    audio.write(path, _tone(3 * RATE), RATE)
    content = bytearray(path.read_bytes())
    content[22:26] = struct.pack(">I", announced)  # the low 32 bits of STREAMINFO's sample count
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.flac"):
        audio.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_write_clips_to_full_scale_and_scales_nothing(tmp_path):
    audio.write(tmp_path / "a.wav", np.array([-3.0, -1.0, 0.25, 1.0, 2.0]), RATE)
    back, _ = audio.read(tmp_path / "a.wav")
    np.testing.assert_allclose(back, [-1, -1, 0.25, 1, 1], atol=1 / 32768)


@pytest.mark.parametrize(
    ("name", "wave", "rate", "words"),
    [
        ("a.xyz", np.zeros(10), RATE, "unknown suffix '.xyz'; use one of .wav"),
        ("a", np.zeros(10), RATE, "unknown suffix"),
        ("none/a.wav", np.zeros(10), RATE, "does not exist"),
        ("old.wav", np.zeros(0), RATE, r"shape \[0\]"),
        ("old.wav", np.zeros((2, 10)), RATE, r"shape \[2, 10\]"),
        ("old.wav", np.zeros(10, np.int16), RATE, "integer samples"),
        ("old.wav", np.array([0, np.nan]), RATE, "sample 1 .* NaN"),
        ("old.mp3", np.zeros(10), 12_345, "cannot write MP3 at 12345 Hz"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, name, wave, rate, words):
    for old in ("old.wav", "old.mp3"):
        (tmp_path / old).write_bytes(b"precious")
    with pytest.raises(UserError, match=words) as error:
        audio.write(tmp_path / name, wave, rate)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "old.wav": b"precious",
        "old.mp3": b"precious",
    }


def test_writing_onto_a_folder_is_refused(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        audio.write(tmp_path / "a.wav", np.zeros(10), RATE)

"""Code files: exact round trips, no bit wasted, and no damage that passes."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from quark_jax.errors import UserError
from quark_jax.hcodec import CodeFile, Codes, read_codes, write_codes

FIELDS = {
    "codec": "1.5",
    "weights": "0123456789abcdef",
    "frame_rate": 25.0,
    "sample_rate": 16000,
    "source_rate": 44100,
    "source_samples": 123457,
}


def recording(groups=37, codebooks=3, size=1024, dynamic=False):
    rng = np.random.default_rng(0)
    streams = rng.integers(0, size, (2, 1, codebooks, groups)).astype(np.int32)
    streams[..., 0], streams[..., -1] = 0, size - 1
    lengths = None
    if dynamic:
        lengths = rng.integers(1, 9, (1, groups)).astype(np.int32)
        lengths[0, 0], lengths[0, -1] = 1, 8
    longest = 8 if dynamic else 1
    return CodeFile(Codes(*streams, lengths), codebook_size=size, longest=longest, **FIELDS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "speech.hq"


def refused(path, message):
    with pytest.raises(UserError) as error:
        read_codes(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("groups", "codebooks", "size"), [(37, 3, 1024), (1, 1, 2), (50, 16, 1000)]
)
def test_round_trip_is_exact(path, dynamic, groups, codebooks, size):
    file = recording(groups, codebooks, size, dynamic)
    write_codes(path, file)
    back = read_codes(path)
    for field in dataclasses.fields(CodeFile)[1:]:
        value = getattr(back, field.name)
        assert value == getattr(file, field.name) and type(value) is type(getattr(file, field.name))
    for name in ("acoustic", "semantic"):
        array = getattr(back.codes, name)
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, getattr(file.codes, name))
    if dynamic:
        np.testing.assert_array_equal(back.codes.lengths, file.codes.lengths)
    else:
        assert back.codes.lengths is None


def header_and_payload(path):
    data = path.read_bytes()
    size = int.from_bytes(data[8:12], "little")
    return data[12 : 12 + size], data[12 + size : -4]


def test_every_number_takes_as_many_bits_as_it_needs(path):
    write_codes(path, recording(37, 3, 1024, dynamic=True))
    header, payload = header_and_payload(path)
    assert len(payload) == 2 * -(-37 * 3 * 10 // 8) + -(-37 * 3 // 8)  # lengths of 1 to 8: 3 bits
    assert json.loads(header)["codec"] == "1.5"
    write_codes(path, recording(37, 3, 1000))
    assert len(header_and_payload(path)[1]) == 2 * -(-37 * 3 * 10 // 8)
    write_codes(path, recording(8, 1, 256))
    file = read_codes(path)
    expected = file.codes.acoustic.astype(np.uint8).tobytes()
    assert header_and_payload(path)[1][:8] == expected  # most significant bit first


def test_an_hour_is_written_and_read_in_little_time(path):
    file = recording(groups=90_000, codebooks=4)
    write_codes(path, file)
    np.testing.assert_array_equal(read_codes(path).codes.semantic, file.codes.semantic)
    assert path.stat().st_size < 1.01 * 90_000 * 8 * 10 / 8


def test_missing_empty_and_foreign_files_are_refused(path):
    refused(path, "no such file")
    path.mkdir()
    refused(path, "not a file; give a .hq file")
    path.rmdir()
    for content in (b"", b"hello, world\n", b"RIFF" + bytes(40), b"H-CODE", b"\x80\x04K\x01."):
        path.write_bytes(content)
        refused(path, "not a code file")


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_file_cut_short_or_longer_is_refused(path, dynamic):
    write_codes(path, recording(dynamic=dynamic))
    data = path.read_bytes()
    for length in range(10, len(data), 10):
        path.write_bytes(data[:length])
        refused(path, "cut short or damaged")
    for length in (7, 8, 11, 12, 15, 16, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "damaged")
    path.write_bytes(data + b"\0")
    refused(path, "damaged")


def test_a_flipped_bit_anywhere_is_refused(path):
    write_codes(path, recording(groups=5, dynamic=True))
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 3):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path, "")


def sealed(path, change):
    """Rewrite the header of a file by `change`, with a checksum that is right."""
    data = path.read_bytes()
    header, payload = header_and_payload(path)
    fields = json.loads(header)
    change(fields)
    text = json.dumps(fields).encode()
    body = data[:8] + len(text).to_bytes(4, "little") + text + payload
    path.write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("codec"),
        lambda f: f.update(surprise=1),
        lambda f: f.update(groups=38),
        lambda f: f.update(groups=-37),
        lambda f: f.update(codebooks="3"),
        lambda f: f.update(codebook_size=None),
        lambda f: f.update(dynamic=True),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(path, change):
    write_codes(path, recording())
    sealed(path, change)
    refused(path, "damaged")


def test_another_version_is_refused_by_its_number(path):
    write_codes(path, recording())
    data = bytearray(path.read_bytes())
    data[7] = 3
    path.write_bytes(data)
    refused(path, "format version 3, this program reads 2")


@pytest.mark.parametrize(
    "damage",
    [
        {"acoustic": -1},
        {"semantic": 1024},
        {"lengths": 0},
        {"lengths": 9},
    ],
)
def test_numbers_that_do_not_fit_are_not_written(path, damage):
    write_codes(path, file := recording(groups=4, dynamic=True))
    before = path.read_bytes()
    ((name, value),) = damage.items()
    array = getattr(file.codes, name).copy()
    array[..., 2] = value
    codes = dataclasses.replace(file.codes, **{name: array})
    with pytest.raises(UserError, match="is possible"):
        write_codes(path, dataclasses.replace(file, codes=codes))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_codes_of_two_recordings_are_not_written(path):
    file = recording()
    both = Codes(*(np.repeat(s, 2, 0) for s in (file.codes.acoustic, file.codes.semantic)))
    with pytest.raises(UserError, match="codes of 2 recordings"):
        write_codes(path, dataclasses.replace(file, codes=both))
    assert not path.exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=f"folder {tmp_path}/no does not exist"):
        write_codes(tmp_path / "no" / "speech.hq", recording())

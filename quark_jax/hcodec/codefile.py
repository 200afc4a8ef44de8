"""The code file (.hq): the codes of one recording, bit-packed, with what it takes to decode them.

bytes 0-7    magic b"H-CODEC" and the version of the format (2)
bytes 8-11   length of the header, unsigned 32-bit little-endian
header       JSON: the fields of `CodeFile` but the codes, and how the codes are packed
payload      acoustic codes [codebooks, groups], semantic codes likewise, then segment lengths
             [groups] where the frame rate is dynamic; each number in as many bits as it
             needs, most significant first, each of the three padded to a whole byte
last 4 bytes CRC-32 of all that stands before
"""

import dataclasses
import json
import math
import struct
import zlib
from itertools import accumulate
from pathlib import Path

import numpy as np
from etils import epath

from quark_jax.errors import UserError
from quark_jax.files import replacing
from quark_jax.hcodec.codes import Codes

_MAGIC = b"H-CODEC"
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class CodeFile:
    """One recording as codes."""

    codes: Codes  # batch of one
    codec: str  # name of the codec that made them
    weights: str  # hash of its weights
    codebook_size: int
    longest: int  # most frames in a segment; 1 where the frame rate is fixed
    frame_rate: float  # Hz
    sample_rate: int  # Hz, of the codec
    source_rate: int  # Hz, of the recording
    source_samples: int  # true length of the recording, at its own rate


def _bits(limit: int) -> int:
    """Bits that hold any of 0 to limit - 1."""
    return max(1, (limit - 1).bit_length())


def _pack(numbers: np.ndarray, limit: int) -> bytes:
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < limit:
        raise UserError(
            f"codes: {numbers.min()} to {numbers.max()} where 0 to {limit - 1} is possible; "
            "pass plain codes of one recording, without padding"
        )
    shifts = np.arange(_bits(limit) - 1, -1, -1)
    return np.packbits((numbers.reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def _unpack(payload: bytes, limit: int, shape: tuple[int, ...]) -> np.ndarray:
    count, bits = int(np.prod(shape)), _bits(limit)
    flags = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    return (flags.reshape(count, bits) @ weights).astype(np.int32).reshape(shape)


def _bytes(count: int, limit: int) -> int:
    return -(-count * _bits(limit) // 8)


def write_codes(path: str | Path, file: CodeFile) -> None:
    """Write a code file, beside `path` first and then in its place. Raises UserError where the
    codes are not those of one recording, or `path` cannot be written."""
    codes = file.codes
    batch, codebooks, groups = codes.acoustic.shape
    if batch != 1:
        raise UserError(f"{path}: codes of {batch} recordings; write each to a file of its own")
    header = {
        field.name: getattr(file, field.name)
        for field in dataclasses.fields(file)
        if field.name != "codes"
    } | {
        "codebooks": codebooks,
        "semantic_codebooks": codes.semantic.shape[1],
        "groups": groups,
        "dynamic": codes.lengths is not None,
    }
    streams = (np.asarray(codes.acoustic), np.asarray(codes.semantic))
    payload = b"".join(_pack(stream, file.codebook_size) for stream in streams)
    if codes.lengths is not None:
        payload += _pack(np.asarray(codes.lengths) - 1, file.longest)
    text = json.dumps(header, sort_keys=True).encode()
    body = _MAGIC + bytes([_VERSION]) + struct.pack("<I", len(text)) + text + payload
    with replacing(path) as beside:
        beside.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def read_codes(path: str | Path) -> CodeFile:
    """Read a code file. Raises UserError where it is missing, a folder, of another kind or
    version, cut short or damaged."""
    path = epath.Path(path)
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; give a .hq file made by `quark tokenize`")
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise UserError(f"{path}: not a code file; give one made by `quark tokenize`")
    if len(data) > len(_MAGIC) and data[len(_MAGIC)] != _VERSION:
        raise UserError(
            f"{path}: format version {data[len(_MAGIC)]}, this program reads {_VERSION}; "
            "use the program that wrote it"
        )
    damaged = UserError(f"{path}: cut short or damaged; copy it again or tokenise the audio again")
    if len(data) < 16 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise damaged
    size = struct.unpack("<I", data[8:12])[0]
    try:
        header = json.loads(data[12 : 12 + size])
        groups, dynamic, *codebooks = (
            header.pop(key) for key in ("groups", "dynamic", "codebooks", "semantic_codebooks")
        )
        limit, longest = header["codebook_size"], header["longest"]
        parts = [((1, number, groups), limit) for number in codebooks]
        parts += [((1, groups), longest)] if dynamic else []
        sizes = [_bytes(math.prod(shape), limit) for shape, limit in parts]
        payload, ends = data[12 + size : -4], list(accumulate(sizes))
        if len(payload) != ends[-1]:
            raise ValueError("payload of another size")
        acoustic, semantic, *lengths = (
            _unpack(payload[end - size : end], limit, shape)
            for (shape, limit), size, end in zip(parts, sizes, ends, strict=True)
        )
        return CodeFile(Codes(acoustic, semantic, *(part + 1 for part in lengths)), **header)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error

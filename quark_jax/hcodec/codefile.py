"""The code file (.hq): the codes of one recording, bit-packed, with what it takes to decode them.

bytes 0-7    magic b"H-CODEC" and the version of the format (1)
bytes 8-11   length of the header, unsigned 32-bit little-endian
header       JSON: the fields of `CodeFile` but the codes, and how the codes are packed
payload      acoustic codes [codebooks, groups], semantic codes likewise, then segment lengths
             [groups] where the frame rate is dynamic; each number in as many bits as it
             needs, most significant first, each of the three padded to a whole byte
last 4 bytes CRC-32 of all that stands before
"""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from etils import epath

from quark_jax.errors import UserError
from quark_jax.files import replacing
from quark_jax.hcodec.codes import Codes

_MAGIC = b"H-CODEC"
_VERSION = 1


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


def _pack(numbers: np.ndarray, bits: int) -> bytes:
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((numbers.reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def _unpack(payload: bytes, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    flags = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits)
    weights = 1 << np.arange(bits - 1, -1, -1)
    return (flags.reshape(count, bits) @ weights).astype(np.int32).reshape(shape)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def write_codes(path: str | Path, file: CodeFile) -> None:
    """Write a code file, beside `path` first and then in its place."""
    codes = file.codes
    codebooks, groups = codes.acoustic.shape[1:]
    bits = max(1, (file.codebook_size - 1).bit_length())
    header = {
        field.name: getattr(file, field.name)
        for field in dataclasses.fields(file)
        if field.name != "codes"
    } | {"codebooks": codebooks, "groups": groups, "dynamic": codes.lengths is not None}
    payload = b"".join(_pack(np.asarray(s[0]), bits) for s in (codes.acoustic, codes.semantic))
    if codes.lengths is not None:
        payload += _pack(np.asarray(codes.lengths[0]) - 1, max(1, (file.longest - 1).bit_length()))
    text = json.dumps(header, sort_keys=True).encode()
    body = _MAGIC + bytes([_VERSION]) + struct.pack("<I", len(text)) + text + payload
    with replacing(path) as beside:
        beside.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def read_codes(path: str | Path) -> CodeFile:
    """Read a code file. Raises UserError where it is missing, of another kind or version, cut
    short or damaged."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .hq file made by `quark tokenize`")
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
        codebooks, groups, dynamic = (header.pop(k) for k in ("codebooks", "groups", "dynamic"))
        bits = max(1, (header["codebook_size"] - 1).bit_length())
        length_bits = max(1, (header["longest"] - 1).bit_length())
        stream, payload = _bytes(codebooks * groups, bits), data[12 + size : -4]
        if len(payload) != 2 * stream + (_bytes(groups, length_bits) if dynamic else 0):
            raise damaged
        shape = (1, codebooks, groups)
        acoustic = _unpack(payload[:stream], bits, shape)
        semantic = _unpack(payload[stream : 2 * stream], bits, shape)
        lengths = _unpack(payload[2 * stream :], length_bits, (1, groups)) + 1 if dynamic else None
        return CodeFile(Codes(acoustic, semantic, lengths), **header)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error

"""Reads mutated files in a process of its own: `python mutations.py READER FILE SEED COUNT`.

Prints one JSON object: how many mutations were refused in one clear line, how many were read, what
went wrong with the others, and the peak of memory. A mutation is a function of seed and number, and
is printed before it is tried, so that one that kills the process is known.
"""

import json
import re
import resource
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from quark_jax.errors import UserError

MEMORY = 2 << 30  # bytes that a reader may take
SECONDS = 10  # of the processor that one file may take
_WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_TEXTS = (b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"\\", b"9" * 30, b"../", b"\xff")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to four changes: bits, bytes, numbers, texts, pieces cut or put elsewhere.
    Half of them near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
        at = int(rng.integers(0, max(1, reach)))
        length = int(rng.integers(1, 64))
        kind = rng.integers(0, 8)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * int(rng.integers(1, 9))
        elif kind == 5:
            word = int(rng.choice(np.array(_WORDS, np.uint64)))
            order = "<>"[int(rng.integers(0, 2))]
            size, code = [(2, "H"), (4, "I"), (8, "Q")][int(rng.integers(0, 3))]
            changed[at : at + size] = struct.pack(f"{order}{code}", word & (256**size - 1))
        elif kind == 6:
            text = _TEXTS[int(rng.integers(0, len(_TEXTS)))]
            changed[at : at + len(text)] = text
        else:
            other = int(rng.integers(0, max(1, len(changed))))
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def with_checksum(data: bytes) -> bytes:
    """A code file whose CRC fits again, so that what stands behind it is read."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def _audio(path: Path) -> None:
    from quark_jax import audio

    wave, rate = audio.read(path)
    assert wave.ndim == 1 and len(wave) and np.isfinite(wave).all() and rate > 0


def _codes(path: Path) -> None:
    from quark_jax.hcodec.codefile import read_codes

    file = read_codes(path)
    assert file.codes.acoustic.shape[0] == file.codes.semantic.shape[0] == 1


def _manifest(path: Path) -> None:
    from data_pipelines import read_manifest

    root = path.parent.resolve()
    for entry in read_manifest(path, root=root):
        assert Path(entry.path).is_relative_to(root)


def _state(path: Path) -> None:
    from quark_jax.interop.files import read_state

    assert all(isinstance(array, np.ndarray) for array in read_state(path).values())


READERS: dict[str, Callable[[Path], None]] = {
    "audio": _audio,
    "codes": _codes,
    "manifest": _manifest,
    "state": _state,
}


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} s of the processor")


def _main(name: str, source: str, seed: int, count: int) -> None:
    read, data = READERS[name], Path(source).read_bytes()
    refused, wrong = 0, []
    signal.signal(signal.SIGPROF, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(source).name)
        path.write_bytes(data)
        read(path)  # the file itself is good; and libraries are loaded before memory is limited
        _limit_memory()
        for number in range(count):
            mutated = mutate(data, np.random.default_rng((seed, number)))
            if name == "codes" and number % 2:
                mutated = with_checksum(mutated)
            path.write_bytes(mutated)
            print(number, file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read(path)
            except UserError as error:
                refused += 1
                if "\n" in str(error) or path.name not in str(error):
                    wrong.append(f"{number}: no one clear line: {error!r}")
            except Exception as error:
                wrong.append(f"{number}: {type(error).__name__}: {error}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    # Of this process alone: what getrusage has begins with the peak of the one that started it.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps({"refused": refused, "read": count - refused - len(wrong), "wrong": wrong,
                      "peak": peak}))  # fmt: skip


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

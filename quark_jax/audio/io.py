"""Audio files in and out, through libsndfile: wav, flac, ogg (Vorbis) and mp3.

Every file that cannot be used is a `UserError` that names it and says what to do.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from quark_jax.errors import UserError

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; beyond these a header is taken for a damaged one
_WRITE_BLOCK = 1 << 16  # samples; libsndfile's Vorbis encoder overflows its stack on long blocks
# libsndfile shortens a wav or aiff file to the data that is there, and says so only in its log.
_SHORT_DATA = re.compile(r"^ *(?:data|SSND) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0xFFFFFFFF  # what programs that write wav to a pipe put for a length
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's number for a flac file that was written to a pipe


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        rate: sample rate in Hz.
        channels: number of channels.
        samples: samples in each channel.
    """

    rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.rate


def info(path: str | Path) -> AudioInfo:
    """Rate, channels and length of an audio file, without decoding it.

    Raises:
        UserError: as `read`, except for what only decoding shows.
    """
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames)


def read(
    path: str | Path, *, rate: int | None = None, mono: Literal["mean", "first"] = "mean"
) -> tuple[np.ndarray, int]:
    """Reads an audio file as one channel.

    Args:
        path: wav, flac, ogg, mp3 or whatever else libsndfile decodes.
        rate: the rate wanted in Hz (soxr HQ); None keeps that of the file.
        mono: "mean" of the channels, or the "first" of them.

    Returns:
        The wave, float32 [samples], full scale being [-1, 1]; and its rate in Hz.

    Raises:
        UserError: if the file is missing, a folder, not audio, without samples, shorter than its
            header says, damaged, or holds NaN or infinite samples; or if `rate` is not positive.
    """
    if rate is None:
        rate = info(path).rate
    return np.concatenate(list(read_blocks(path, rate=rate, mono=mono))), rate


def read_blocks(
    path: str | Path,
    *,
    rate: int | None = None,
    mono: Literal["mean", "first"] = "mean",
    seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """Reads an audio file of any length in blocks: concatenated they are what `read` returns.

    Args:
        path, rate, mono: as in `read`.
        seconds: length of a block; after resampling the lengths differ by a little.

    Yields:
        float32 [samples], never empty.

    Raises:
        UserError: as `read`; a short or damaged file raises where the damage is met.
    """
    if mono not in ("mean", "first"):
        raise ValueError(f"mono: {mono!r} is not known; use 'mean' or 'first'")
    if rate is not None and rate < 1:
        raise UserError(f"{path}: rate {rate}: choose one of at least 1 Hz, or None for the file's")
    yielded = 0
    with _open(path) as file:
        resampler = None
        if rate is not None and rate != file.samplerate:
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, quality="HQ")
        for block in _decode(file, path, max(1, round(seconds * file.samplerate))):
            wave = block.mean(axis=1, dtype=np.float32) if mono == "mean" else block[:, 0]
            if resampler is not None:
                wave = resampler.resample_chunk(np.ascontiguousarray(wave))
            if len(wave):
                yielded += len(wave)
                yield wave
        if resampler is not None and len(rest := resampler.resample_chunk(np.zeros(0, "f4"), True)):
            yielded += len(rest)
            yield rest
    if not yielded:
        raise UserError(f"{path}: too short to resample to {rate} Hz; give a longer recording")


def write(path: str | Path, wave: np.ndarray, rate: int) -> None:
    """Writes one channel; the suffix picks the format: .wav and .flac (16-bit), .ogg, .mp3.

    Nothing is scaled. Samples beyond [-1, 1] are clipped to it, in every format. The file is
    written beside its place and renamed, so that a failed write leaves an older file as it was.

    Args:
        path: where to write; its folder has to exist.
        wave: floating point [samples], at least one.
        rate: in Hz.

    Raises:
        UserError: if the suffix is unknown, the folder missing or closed to us, the wave empty,
            not of one axis, or not finite, or the format has no such rate.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: folder {path.parent} does not exist; create it first")
    wave = np.asarray(wave)
    if wave.ndim != 1 or not len(wave):
        raise UserError(f"{path}: a wave of shape {list(wave.shape)} is not [samples]; not written")
    if np.issubdtype(wave.dtype, np.integer):
        raise UserError(f"{path}: integer samples; scale them to floating point in [-1, 1]")
    wave = wave.astype(np.float32)
    _check_finite(wave, path, rate)
    container, subtype = FORMATS[path.suffix.lower()]
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with soundfile.SoundFile(
            beside, "w", rate, channels=1, format=container, subtype=subtype
        ) as file:
            for start in range(0, len(wave), _WRITE_BLOCK):
                file.write(np.clip(wave[start : start + _WRITE_BLOCK], -1, 1))
        beside.replace(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(
            f"{path}: cannot write {container} at {rate} Hz ({_reason(error)}); "
            "check the folder's permissions and space, and that the format has this rate"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """An open audio file whose header makes sense."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give an audio file")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; record or copy it again")
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as audio ({_reason(error)}); give a wav, flac, ogg or mp3 file"
        ) from error
    with file:
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise UserError(
                f"{path}: a sample rate of {file.samplerate} Hz is outside "
                f"{MIN_RATE} to {MAX_RATE} Hz; the header may be damaged: convert the file again"
            )
        short = _SHORT_DATA.search(file.extra_info)
        if short and int(short[1]) != _UNKNOWN_SIZE:
            raise UserError(
                f"{path}: the header announces {short[1]} bytes of audio, the file holds "
                f"{short[2]}; it was cut off: copy or convert it again"
            )
        if file.frames == _UNKNOWN_FRAMES:
            raise UserError(f"{path}: the header does not say how long it is; convert it again")
        if file.frames == 0:
            raise UserError(f"{path}: holds no samples; give a recording")
        yield file


def _decode(file: soundfile.SoundFile, path: str | Path, size: int) -> Iterator[np.ndarray]:
    """Blocks float32 [<= size, channels] of the whole file. Memory follows what is there to read,
    never what the header announces."""
    done = 0
    try:
        while done < file.frames:
            block = file.read(min(size, file.frames - done), dtype="float32", always_2d=True)
            if not len(block):
                break
            _check_finite(block, path, file.samplerate, done)
            done += len(block)
            yield block
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path}: damaged or cut off near {done / file.samplerate:.2f} s "
            f"({_reason(error)}); copy or convert it again"
        ) from error
    if done < file.frames:
        raise UserError(
            f"{path}: the header announces {file.frames} samples, the file holds {done}; "
            "it was cut off: copy or convert it again"
        )


def _check_finite(wave: np.ndarray, path: str | Path, rate: int, offset: int = 0) -> None:
    finite = np.isfinite(wave)
    if not finite.all():
        first = offset + int(np.argwhere(~finite)[0, 0])
        raise UserError(
            f"{path}: sample {first} ({first / rate:.3f} s) is NaN or infinite; "
            "repair or replace the recording"
        )


def _reason(error: Exception) -> str:
    """The library's reason without the path, which our message already has."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.strip().rstrip(".")

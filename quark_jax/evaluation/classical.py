"""Classical speech codecs, to set a neural one beside: Opus and Codec2.

Each takes a wave [samples] at `rate` Hz and gives it back coded, at that rate, of that length and
in time with it, with the bits that were sent. The packages are in the extra `eval`:
`MissingPackage` where one is not installed.
"""

import io
import subprocess
import sys

import numpy as np

from quark_jax import audio
from quark_jax.evaluation.quality import eval_package

OPUS_FLOOR = 6000  # bit/s, the least that Opus codes at (RFC 6716)
CODEC2_MODES = (700, 1200, 1300, 1400, 1600, 2400, 3200)  # bit/s
_OPUS_RATE, _CODEC2_RATE = 48_000, 8_000
# Samples at 8 kHz that a decoded wave comes late, by which lag has the highest STOI.
_CODEC2_DELAY, _CODEC2_DELAY_700 = 160, 240
_CODEC2 = """
import sys, numpy, pycodec2
codec = pycodec2.Codec2(int(sys.argv[1]))
samples = numpy.frombuffer(sys.stdin.buffer.read(), numpy.int16)
for frame in samples.reshape(-1, codec.samples_per_frame()):
    sys.stdout.buffer.write(codec.decode(codec.encode(frame)).tobytes())
"""


def opus(wave: np.ndarray, rate: int, bitrate: int = OPUS_FLOOR) -> tuple[np.ndarray, int]:
    """Opus (RFC 6716) in its mode for speech, packets of 60 ms, through PyAV's libopus.

    Returns:
        The wave, and the bits of all packets; what the file around them takes is not counted.
    """
    av = eval_package("av", "code with Opus")
    samples = audio.resample(wave, rate, _OPUS_RATE)
    file, bits = io.BytesIO(), 0
    with av.open(file, "w", format="ogg") as container:
        options = {"application": "voip", "frame_duration": "60"}
        stream = container.add_stream("libopus", rate=_OPUS_RATE, layout="mono", options=options)
        stream.bit_rate = bitrate
        frame = av.AudioFrame.from_ndarray(_int16(samples)[None], format="s16", layout="mono")
        frame.sample_rate = _OPUS_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            bits += 8 * packet.size
            container.mux(packet)
    file.seek(0)
    with av.open(file) as container:
        decoded = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return _fitted(np.concatenate(decoded), _OPUS_RATE, wave, rate), bits


def codec2(wave: np.ndarray, rate: int, mode: int) -> tuple[np.ndarray, int]:
    """Codec2 (Rowe 2011), a vocoder for speech of 8 kHz, through pycodec2.

    Its library draws phases at random from where the process last left off: in a process of its own
    a wave always gives the same.

    Args:
        mode: bits per second, one of `CODEC2_MODES`.
    """
    codec = eval_package("pycodec2", "code with Codec2").Codec2(mode)
    size = codec.samples_per_frame()
    delay = _CODEC2_DELAY_700 if mode == 700 else _CODEC2_DELAY
    samples = _int16(audio.resample(wave, rate, _CODEC2_RATE))
    count = -(-(len(samples) + delay) // size)
    padded = np.pad(samples, (0, count * size - len(samples)))
    command = [sys.executable, "-P", "-c", _CODEC2, str(mode)]
    decoded = subprocess.run(command, input=padded.tobytes(), capture_output=True, check=True)
    spoken = np.frombuffer(decoded.stdout, np.int16)[delay:].astype(np.float32) / 32768
    return _fitted(spoken, _CODEC2_RATE, wave, rate), count * codec.bits_per_frame()


def nearest_codec2_mode(bitrate: float) -> int:
    """The mode of Codec2 nearest to `bitrate` bit/s, the higher one of two as near."""
    return min(reversed(CODEC2_MODES), key=lambda mode: abs(mode - bitrate))


def _int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.round(wave * 32768), -32768, 32767).astype(np.int16)


def _fitted(decoded: np.ndarray, decoded_rate: int, wave: np.ndarray, rate: int) -> np.ndarray:
    """`decoded` at the rate and of the length of `wave`."""
    decoded = audio.resample(decoded, decoded_rate, rate)
    return np.pad(decoded, (0, max(0, len(wave) - len(decoded))))[: len(wave)]

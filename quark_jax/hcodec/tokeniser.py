"""The codec as people use it: recordings at any rate and of any length to codes, and back."""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from os import PathLike

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from quark_jax import audio
from quark_jax.config import from_dict, to_dict
from quark_jax.encoders import SSLFeatures, copy_encoder
from quark_jax.errors import UserError
from quark_jax.files import read_json, replacing
from quark_jax.hcodec.codefile import CodeFile
from quark_jax.hcodec.codes import Codes
from quark_jax.hcodec.config import HCodecConfig
from quark_jax.hcodec.model import HCodec
from quark_jax.hcodec.reach import decoder_reach, encoder_reach

_WINDOW = 32.0  # seconds that are encoded or decoded at once
_MEMORY = 1.0  # seconds of context for what has no finite reach: LSTMs, attention, GroupNorm
_ENCODER = "encoder"  # folder of the features' encoder, inside that of the codec


class Tokeniser:
    """A codec with the encoder of its SSL features.

    Up to 32 s are coded as a whole. Longer recordings go through windows of 32 s, and memory stays
    bounded. At either border a window has as much context as the convolutions reach and a second
    more; what is kept of it differs from the whole only by what the LSTMs, full attention and
    GroupNorm hear from farther away. Where the frame rate is dynamic, windows are encoded without
    context, because segments of windows that overlap would not meet: there a segment also ends at
    each border.
    """

    def __init__(self, codec: HCodec, features: SSLFeatures | None = None):
        """`features`: None takes the encoder that `codec.config` names."""
        self.codec = codec
        if features is not None:
            self.features = features

    @property
    def config(self) -> HCodecConfig:
        return self.codec.config

    @cached_property
    def features(self) -> SSLFeatures:
        """The encoder of the codec's features, loaded when it is first needed: decoding does not.
        Raises UserError where there is none, or it does not fit the codec."""
        config, want = self.config.features, self.config.semantic.channels
        if config.kind == "hugging_face" and config.folder is None:
            raise UserError(
                f"codec {self.config.name}: has no encoder to compute its features with; "
                "import it again with --features FOLDER"
            )
        features = SSLFeatures(config)
        if features.channels != want:
            raise UserError(
                f"{config.folder}: an encoder of {features.channels} channels, but codec "
                f"{self.config.name} takes {want}; use the one that it was trained with"
            )
        return features

    @classmethod
    def load(cls, folder: str | PathLike) -> "Tokeniser":
        """The codec that `save` wrote to `folder`. Raises UserError where something is missing,
        damaged or does not fit."""
        folder = epath.Path(folder)
        path = folder / "config.json"
        fields = read_json(path, "give a codec folder that training or `quark import` wrote")
        config = from_dict(HCodecConfig, fields, str(path))
        if encoder := config.features.folder:  # relative to this one
            config = config.with_encoder(str(folder / encoder))
        return cls(HCodec.from_torch(folder / "model.safetensors", config))

    def save(self, folder: str | PathLike) -> None:
        """Write config.json and model.safetensors (PyTorch names) into `folder`, and the encoder
        of the features, where it has weights, into a folder of its own in there: what is saved
        can be moved as a whole."""
        from quark_jax.interop.files import write_state

        folder, config = epath.Path(folder), self.config
        folder.mkdir(parents=True, exist_ok=True)
        if encoder := config.features.folder:
            copy_encoder(encoder, folder / _ENCODER)
            config = config.with_encoder(_ENCODER)
        write_state(folder / "model.safetensors", self.codec.to_torch())
        with replacing(folder / "config.json") as beside:
            beside.write_text(json.dumps(to_dict(config), indent=1))

    @cached_property
    def weights_hash(self) -> str:
        """Sixteen hexadecimal digits that tell one set of weights from another."""
        from quark_jax.interop.hcodec import hcodec_table
        from quark_jax.interop.table import to_torch

        digest = hashlib.sha256()
        # One by one: all of them together would be a second copy of a large model.
        for entry in sorted(hcodec_table(self.config), key=lambda entry: entry.torch):
            digest.update(entry.torch.encode())
            digest.update(to_torch(self.codec, [entry])[entry.torch].tobytes())
        return digest.hexdigest()[:16]

    def encode(
        self,
        recording: str | PathLike | np.ndarray,
        rate: int | None = None,
        *,
        mono: str = "mean",
        threshold: float | None = None,
    ) -> CodeFile:
        """Codes of an audio file, or of an array [samples] at `rate` Hz.

        `threshold`: similarity at or below which a segment begins (dynamic frame rate only).
        Raises UserError where the audio or the threshold cannot be used.
        """
        if threshold is not None and self.config.dynamic is None:
            raise UserError(
                f"codec {self.config.name}: its frame rate is fixed; leave out the threshold"
            )
        if isinstance(recording, str | PathLike):
            wave, rate = audio.read(recording, mono=mono)
        else:
            wave = np.asarray(recording)
            if rate is None or rate < 1:
                raise UserError("audio: an array needs its rate in Hz; pass rate=")
            if wave.ndim != 1 or not wave.size or not np.issubdtype(wave.dtype, np.floating):
                raise UserError("audio: pass one channel [samples] of floating point in [-1, 1]")
            wave = wave.astype(np.float32)
            if not np.isfinite(wave).all():
                raise UserError("audio: holds NaN or infinite samples; repair the recording")
        resampled = audio.resample(wave, rate, self.config.sample_rate)
        return CodeFile(
            codes=self._encode(resampled, threshold),
            codec=self.config.name,
            weights=self.weights_hash,
            codebook_size=self.config.quantiser.codebook_size,
            longest=self.config.dynamic.longest if self.config.dynamic else 1,
            frame_rate=self.config.frame_rate,
            sample_rate=self.config.sample_rate,
            source_rate=rate,
            source_samples=len(wave),
        )

    def encode_batch(self, waves: np.ndarray, samples: np.ndarray | None = None) -> Codes:
        """Codes of waves [batch, samples] at the codec's rate, at once.

        `samples` [batch]: their true lengths, where they differ. An item gets in its first
        ceil(samples / hop) frames what it gets alone; what follows them means nothing.
        """
        hop = self.config.hop
        padded = np.pad(waves, ((0, 0), (0, -waves.shape[1] % hop)))
        if samples is None:
            samples = np.full(len(waves), waves.shape[1])
        inside = np.arange(padded.shape[1]) < np.asarray(samples)[:, None]
        frames = jnp.asarray(-(-np.asarray(samples) // hop))
        return encode_window(self.codec, self.features, np.where(inside, padded, 0), frames, None)

    def decode_batch(self, codes: Codes, frames: np.ndarray | None = None) -> np.ndarray:
        """Waves [batch, samples] at the codec's rate of codes with a fixed frame rate, at once.

        `frames` [batch]: how many each item has, where they differ; its wave is the one it gets
        alone, followed by zeros.
        """
        batch, _, longest = codes.acoustic.shape
        frames = jnp.full(batch, longest) if frames is None else jnp.asarray(frames)
        return np.asarray(_decode_window(self.codec, codes.acoustic, codes.semantic, frames))

    def decode(self, file: CodeFile, rate: int | None = None) -> tuple[np.ndarray, int]:
        """Wave [samples] and its rate in Hz: that of the recording, or `rate`.

        At the recording's rate it has exactly the recording's length. Raises UserError where the
        codes are not of this codec, or the rate is not positive.
        """
        mine = (self.config.name, self.weights_hash)
        if (file.codec, file.weights) != mine:
            raise UserError(
                f"codes of codec {file.codec} with weights {file.weights} do not fit codec "
                f"{mine[0]} with weights {mine[1]}; decode them with the model that made them"
            )
        if rate is None:
            rate = file.source_rate
        elif rate < 1:
            raise UserError(
                f"rate {rate}: choose one of at least 1 Hz, or None for the recording's"
            )
        wave = audio.resample(self._decode(file.codes), self.config.sample_rate, rate)
        samples = round(file.source_samples * rate / file.source_rate)
        return np.pad(wave, (0, max(0, samples - len(wave))))[:samples], rate

    def _encode(self, wave: np.ndarray, threshold: float | None) -> Codes:
        hop, dynamic = self.config.hop, self.config.dynamic is not None
        frames = max(1, -(-len(wave) // hop))
        wave = np.pad(wave, (0, frames * hop - len(wave)))
        parts = []
        # Segments of windows that overlap would not meet at a frame: dynamic rates have no context.
        for start, stop, first, last in self._windows(
            frames, 0 if dynamic else encoder_reach(self.config) + _MEMORY
        ):
            padded = np.zeros((1, self._bucket(stop - start) * hop), np.float32)
            padded[0, : (stop - start) * hop] = wave[start * hop : stop * hop]
            codes = encode_window(
                self.codec, self.features, padded, jnp.array([stop - start]), threshold
            )
            if dynamic:
                first, last = 0, int(jnp.sum(codes.lengths > 0))
            parts.append(jax.tree.map(lambda a, i=first, j=last: np.asarray(a)[..., i:j], codes))
        return jax.tree.map(lambda *a: np.concatenate(a, axis=-1), *parts)

    def _decode(self, codes: Codes) -> np.ndarray:
        streams = [np.asarray(codes.acoustic[0]), np.asarray(codes.semantic[0])]
        if codes.lengths is not None:  # a frame of a segment is the segment's
            streams = [np.repeat(s, np.asarray(codes.lengths[0]), axis=-1) for s in streams]
        hop, parts = self.config.hop, []
        for start, stop, first, last in self._windows(
            streams[0].shape[-1], decoder_reach(self.config) + _MEMORY
        ):
            size = self._bucket(stop - start)
            padded = [np.zeros((1, s.shape[0], size), np.int32) for s in streams]
            for target, source in zip(padded, streams, strict=True):
                target[0, :, : stop - start] = source[:, start:stop]
            wave = _decode_window(self.codec, *padded, jnp.array([stop - start]))
            parts.append(np.asarray(wave[0, first * hop : last * hop]))
        return np.concatenate(parts)

    def _windows(self, frames: int, context: float) -> Iterator[tuple[int, int, int, int]]:
        """Frames (start, stop) of each window, and which of them (first, last) are kept."""
        size = int(_WINDOW * self.config.frame_rate)
        margin = math.ceil(context * self.config.frame_rate)
        if frames <= size:
            yield 0, frames, 0, frames
            return
        for begin in range(0, frames, size - 2 * margin):
            end = min(begin + size - 2 * margin, frames)
            start, stop = max(0, begin - margin), min(end + margin, frames)
            yield start, stop, begin - start, end - start

    def _bucket(self, frames: int) -> int:
        """A length to pad to: few enough of them that few programs are compiled."""
        size = max(1, int(self.config.frame_rate))
        while size < frames:
            size *= 2
        return min(size, int(_WINDOW * self.config.frame_rate))


@jax.jit
def encode_window(
    codec: HCodec,
    features: SSLFeatures,
    wave: jax.Array,
    frames: jax.Array,
    threshold: float | None,
) -> Codes:
    """The program of `Tokeniser.encode_batch`: codes of waves [batch, samples] at the codec's rate,
    of whole codec frames, of which each item has `frames` [batch]."""
    config = codec.config
    speech = audio.resample_sinc(wave, config.sample_rate, 16000)
    mixed = features(speech, frames * config.feature_stride * 320)
    embedding = codec.embed(wave, mixed, threshold, frames)
    return Codes(
        codec.quantiser.encode(embedding.acoustic),
        codec.semantic_quantiser.encode(embedding.semantic),
        embedding.lengths,
    )


@jax.jit
def _decode_window(
    codec: HCodec, acoustic: jax.Array, semantic: jax.Array, frames: jax.Array
) -> jax.Array:
    streams = codec.quantiser.decode(acoustic), codec.semantic_quantiser.decode(semantic)
    return codec.synthesise(*streams, frames)

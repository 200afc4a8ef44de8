"""H-Codec: wave and SSL features to two streams of codes, and back (arXiv 2512.20151)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from quark_jax.errors import UserError
from quark_jax.hcodec.codes import Codes
from quark_jax.hcodec.config import HCodecConfig, SeanetConfig
from quark_jax.hcodec.decoder import Decoder
from quark_jax.hcodec.dynamic import Aggregator, Transformer, expand, segment
from quark_jax.hcodec.quantiser import QuantiserState, ResidualQuantiser
from quark_jax.hcodec.seanet import SeanetEncoder
from quark_jax.hcodec.semantic import SemanticDecoder, SemanticEncoder
from quark_jax.hcodec.spectral import SpectralEncoder
from quark_jax.nn import frame_mask
from quark_jax.nn.layers import Dtype


class Embedding(NamedTuple):
    """Encoder outputs, aggregated over segments where the frame rate is dynamic."""

    acoustic: jax.Array  # [batch, groups, width]
    semantic: jax.Array  # [batch, groups, width]
    lengths: jax.Array | None  # [batch, groups] frames in each group, 0 where there is none


class Reconstruction(NamedTuple):
    """What one training pass gives."""

    wave: jax.Array  # [batch, samples]
    features: jax.Array  # [batch, 50 Hz frames, channels], prediction of the SSL features
    commitment: jax.Array  # scalar, sum of both streams
    acoustic: jax.Array  # codes [batch, codebooks, groups]
    semantic: jax.Array  # codes [batch, codebooks, groups]
    state: tuple[QuantiserState, QuantiserState]  # next codebooks, acoustic and semantic


class HCodec(nnx.Module):
    """The codec of one `HCodecConfig`.

    `encode` and `decode` are for whole batches of arrays; `Tokeniser` is the one for files.
    Methods that take `frames` [batch] (codec frames of each item; None where all are full) give an
    item of a padded batch what it gets alone.
    """

    def __init__(self, config: HCodecConfig, *, dtype: Dtype = None, rngs: nnx.Rngs):
        width = config.quantiser.width
        if isinstance(config.encoder, SeanetConfig):
            self.encoder = SeanetEncoder(config.encoder, width, dtype=dtype, rngs=rngs)
        else:
            stride = config.hop // config.encoder.hop
            self.encoder = SpectralEncoder(config.encoder, stride, width, dtype=dtype, rngs=rngs)
        self.semantic_encoder = SemanticEncoder(config.semantic, width, dtype=dtype, rngs=rngs)
        self.quantiser = ResidualQuantiser(config.quantiser, rngs=rngs)
        self.semantic_quantiser = ResidualQuantiser(config.semantic_quantiser, rngs=rngs)
        if dynamic := config.dynamic:
            aggregator = {
                "layers": dynamic.aggregator_layers,
                "heads": dynamic.heads,
                "inner": dynamic.aggregator_inner,
                "dtype": dtype,
                "rngs": rngs,
            }
            self.aggregator = Aggregator(width, **aggregator)
            self.semantic_aggregator = Aggregator(width, **aggregator)
            self.bottleneck = Transformer(
                2 * width,
                layers=dynamic.bottleneck_layers,
                heads=dynamic.heads,
                inner=dynamic.bottleneck_inner,
                dtype=dtype,
                rngs=rngs,
            )
        self.decoder = Decoder(config.decoder, 2 * width, dtype=dtype, rngs=rngs)
        self.semantic_decoder = SemanticDecoder(config.semantic, width, dtype=dtype, rngs=rngs)
        self.config = config

    # Inference, on arrays as they come from outside.

    def encode(self, wave: jax.Array, features: jax.Array, threshold: float | None = None) -> Codes:
        """Wave [batch, samples] at the codec's rate and SSL features [batch, channels, 50 Hz
        frames] (mixed and compressed as `config.features` says) to codes.

        The wave is zero-padded to whole codec frames. `threshold` is the similarity at or below
        which a segment begins (dynamic frame rate only; None takes that of the config).
        Raises UserError where shapes do not fit.
        """
        wave, features = self._checked(wave, features)
        if self.config.dynamic is None and threshold is not None:
            raise UserError(
                f"codec {self.config.name}: its frame rate is fixed; leave out the threshold"
            )
        codes = _encode(self, wave, features.swapaxes(1, 2), threshold)
        if codes.lengths is None or isinstance(codes.lengths, jax.core.Tracer):
            return codes
        groups = int(jnp.max(jnp.sum(codes.lengths > 0, axis=1)))
        return jax.tree.map(lambda a: a[..., :groups], codes)

    def decode(self, codes: Codes, frames: int | None = None) -> jax.Array:
        """Codes to a wave [batch, samples], samples = frames * hop; a shorter item of a batch
        with dynamic frame rate is followed by zeros. `frames`, of the longest item, has to be
        given where the codes are traced. Raises UserError where shapes do not fit."""
        config, (batch, _, groups) = self.config, codes.acoustic.shape
        want = config.quantiser.codebooks, config.semantic_quantiser.codebooks
        shapes = [(batch, codebooks, groups) for codebooks in want]
        if [codes.acoustic.shape, codes.semantic.shape] != shapes:
            raise UserError(
                f"codes: shapes {codes.acoustic.shape} and {codes.semantic.shape} do not fit "
                f"codec {config.name}; pass {want[0]} acoustic and {want[1]} semantic codebooks"
            )
        if (codes.lengths is None) != (self.config.dynamic is None):
            raise UserError(
                f"codes: codec {self.config.name} "
                + ("needs segment lengths" if self.config.dynamic else "has no segment lengths")
                + "; use codes that it made"
            )
        return _decode(self, codes, codes.frames if frames is None else frames)

    def _checked(self, wave: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        config = self.config
        if wave.ndim != 2 or features.ndim != 3 or wave.shape[0] != features.shape[0]:
            raise UserError(
                f"wave {wave.shape}, features {features.shape}: pass a wave [batch, samples] and "
                "features [batch, channels, frames] of one batch"
            )
        frames = -(-wave.shape[1] // config.hop)
        want = (config.semantic.channels, frames * config.feature_stride)
        if frames == 0 or features.shape[1:] != want:
            raise UserError(
                f"features {list(features.shape[1:])}: {wave.shape[1]} samples need "
                f"[channels, frames] {list(want)} at 50 Hz"
            )
        padding = frames * config.hop - wave.shape[1]
        return jnp.pad(wave, ((0, 0), (0, padding))), features

    # The parts, channels last.

    def embed(
        self,
        wave: jax.Array,
        features: jax.Array,
        threshold: jax.Array | float | None = None,
        frames: jax.Array | None = None,
    ) -> Embedding:
        """Wave [batch, frames * hop] and features [batch, 50 Hz frames, channels] to what the
        quantisers take."""
        config = self.config
        samples = None if frames is None else frames * config.hop
        acoustic = self.encoder(wave, samples)
        semantic = self.semantic_encoder(
            features, None if frames is None else frames * config.feature_stride
        )
        if config.dynamic is None:
            return Embedding(acoustic, semantic, None)
        if threshold is None:
            threshold = config.dynamic.threshold
        mask = None if frames is None else frame_mask(frames, acoustic.shape[1])
        owner, lengths = segment(semantic, threshold, config.dynamic.longest, mask)
        return Embedding(
            self.aggregator(acoustic, owner, lengths),
            self.semantic_aggregator(semantic, owner, lengths),
            lengths,
        )

    def spread(self, x: jax.Array, lengths: jax.Array | None, frames: int) -> jax.Array:
        """Quantised groups [batch, groups, width] to frames [batch, frames, width]."""
        return x if lengths is None else expand(x, lengths, frames)

    def synthesise(
        self,
        acoustic: jax.Array,
        semantic: jax.Array,
        frames: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Both streams [batch, frames, width] to the wave; `key` turns dropout on."""
        x = jnp.concatenate([acoustic, semantic], axis=-1)
        if self.config.dynamic:
            mask = None if frames is None else frame_mask(frames, x.shape[1])
            x = self.bottleneck(x, mask)
        return self.decoder(x, frames, key)

    def reconstruct(
        self,
        wave: jax.Array,
        features: jax.Array,
        key: jax.Array,
        threshold: jax.Array | None = None,
    ) -> Reconstruction:
        """One training pass: `wave` [batch, frames * hop], `features` [batch, 50 Hz frames,
        channels], with dropout and quantiser dropout drawn from `key`."""
        acoustic_key, semantic_key, dropout_key = jax.random.split(key, 3)
        frames = wave.shape[1] // self.config.hop
        embedding = self.embed(wave, features, threshold)
        lengths = embedding.lengths
        mask = None if lengths is None else (lengths > 0)[..., None]
        acoustic = self.quantiser.train(embedding.acoustic, acoustic_key, mask)
        semantic = self.semantic_quantiser.train(embedding.semantic, semantic_key, mask)
        acoustic_frames = self.spread(acoustic.output, lengths, frames)
        semantic_frames = self.spread(semantic.output, lengths, frames)
        return Reconstruction(
            wave=self.synthesise(acoustic_frames, semantic_frames, key=dropout_key),
            features=self.semantic_decoder(semantic_frames),
            commitment=acoustic.commitment + semantic.commitment,
            acoustic=acoustic.codes,
            semantic=semantic.codes,
            state=(acoustic.state, semantic.state),
        )

    # Weights to and from PyTorch.

    @classmethod
    def from_torch(cls, state, config: HCodecConfig, *, dtype: Dtype = None) -> "HCodec":
        """A codec with the weights `state`: {PyTorch name: array}, or the path of a .pt or
        .safetensors file. Raises UserError that lists every tensor that does not fit."""
        from quark_jax.interop.hcodec import load_hcodec

        return load_hcodec(state, config, dtype=dtype)

    def to_torch(self) -> dict[str, np.ndarray]:
        """{PyTorch name: array}, as published checkpoints have them."""
        from quark_jax.interop.hcodec import hcodec_to_torch

        return hcodec_to_torch(self)


@jax.jit
def _encode(
    codec: HCodec, wave: jax.Array, features: jax.Array, threshold: jax.Array | float | None
) -> Codes:
    embedding = codec.embed(wave, features, threshold)
    return Codes(
        codec.quantiser.encode(embedding.acoustic),
        codec.semantic_quantiser.encode(embedding.semantic),
        embedding.lengths,
    )


@jax.jit(static_argnames="frames")
def _decode(codec: HCodec, codes: Codes, frames: int) -> jax.Array:
    acoustic = codec.spread(codec.quantiser.decode(codes.acoustic), codes.lengths, frames)
    semantic = codec.spread(codec.semantic_quantiser.decode(codes.semantic), codes.lengths, frames)
    valid = None if codes.lengths is None else jnp.sum(codes.lengths, axis=1)
    return codec.synthesise(acoustic, semantic, valid)

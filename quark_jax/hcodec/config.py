"""What an H-Codec is made of: one frozen config with the published versions as presets."""

import math
from dataclasses import dataclass, replace

from quark_jax.encoders.features import FeatureConfig
from quark_jax.errors import UserError


@dataclass(frozen=True)
class SeanetConfig:
    """Waveform encoder of 1.0 and 1.5: strided, weight-normalised convolutions."""

    filters: int = 32  # channels after the first convolution, doubled at each stride
    strides: tuple[int, ...] = (2, 4, 5, 8)  # in the order the wave meets them
    last_stride: int = 2
    layers: int = 2  # of the recurrent transformer
    heads: int = 8

    @property
    def width(self) -> int:
        """Channels after the last of `strides`, which the recurrent transformer has."""
        return self.filters * 2 ** len(self.strides)


@dataclass(frozen=True)
class SpectralConfig:
    """STFT encoder of 2.0: log-magnitude and phase through ConvNeXt blocks."""

    n_fft: int = 1920  # samples
    hop: int = 960  # samples
    width: int = 1536
    inner: int = 4608  # width inside a ConvNeXt block
    blocks: int = 24
    layers: int = 2
    heads: int = 24


@dataclass(frozen=True)
class SemanticConfig:
    """Convolutional coder of SSL features, from 50 Hz to the codec's frame rate and back."""

    channels: int = 768  # of the SSL features
    width: int = 768
    strides: tuple[int, ...] = (2, 1)


@dataclass(frozen=True)
class QuantiserConfig:
    """Residual vector quantiser; each stream has one of its own."""

    codebooks: int = 4
    codebook_size: int = 1024
    width: int = 512
    decay: float = 0.99  # of the EMA codebooks
    epsilon: float = 1e-5  # of the Laplace-smoothed counts
    kmeans_iterations: int = 50  # that begin the codebooks; 0: they begin at random
    dropout: bool = True  # keep 1..codebooks layers per batch in training
    dead_code_threshold: float = 0.0  # replace codes of a smaller averaged count; 0: never


@dataclass(frozen=True)
class DecoderConfig:
    """Both streams to the wave: recurrent transformer, ConvNeXt blocks, inverse STFT."""

    width: int = 768
    inner: int = 2304
    blocks: int = 12
    layers: int = 2
    heads: int = 8
    mlp: int = 3072
    n_fft: int = 1280  # samples
    hop: int = 320  # samples
    upsample: int = 2  # head frames per codec frame
    repeat: bool = False  # upsample by repetition and a convolution (2.0), not sub-pixel (1.x)
    dropout: float = 0.1


@dataclass(frozen=True)
class DynamicConfig:
    """Dynamic frame rate of 1.5: runs of similar semantic frames become one."""

    threshold: float = 0.6  # cosine similarity at or below which a segment begins
    lower: float = 0.7  # range the threshold is drawn from in training
    upper: float = 1.0
    longest: int = 8  # frames in a segment
    heads: int = 8
    aggregator_layers: int = 32
    aggregator_inner: int = 2048
    bottleneck_layers: int = 32
    bottleneck_inner: int = 2048


@dataclass(frozen=True)
class HCodecConfig:
    """One H-Codec. `HCodecConfig.preset(name)` gives the published ones and `tiny`."""

    name: str
    sample_rate: int  # Hz
    frame_rate: float  # Hz; the highest one where it is dynamic
    features: FeatureConfig
    encoder: SeanetConfig | SpectralConfig
    semantic: SemanticConfig
    quantiser: QuantiserConfig
    decoder: DecoderConfig
    dynamic: DynamicConfig | None = None
    # Of the semantic stream, 0 for no such stream; None: as many as the acoustic one.
    semantic_codebooks: int | None = None

    def __post_init__(self):
        if self.semantic_quantiser.codebooks < (1 if self.dynamic else 0):
            raise UserError(
                f"codec {self.name}: semantic_codebooks {self.semantic_codebooks}; choose at least "
                "0, or 1 where the frame rate is dynamic"
            )
        if self.frame_rate <= 0 or self.hop * self.frame_rate != self.sample_rate:
            raise UserError(
                f"codec {self.name}: {self.sample_rate} Hz is not a whole number of samples at "
                f"{self.frame_rate} frames/s; choose a frame rate that divides it"
            )
        if self.hop != self.decoder.hop * self.decoder.upsample:
            raise UserError(
                f"codec {self.name}: decoder hop {self.decoder.hop} x upsample "
                f"{self.decoder.upsample} is not the codec hop {self.hop}; make them equal"
            )
        if self.decoder.repeat and self.decoder.upsample % 2:
            raise UserError(
                f"codec {self.name}: decoder.upsample {self.decoder.upsample} is odd, with which "
                "decoder.repeat loses a frame; make it even, or repeat false"
            )
        encoder = self.encoder
        if isinstance(encoder, SeanetConfig):
            step = math.prod(encoder.strides) * encoder.last_stride
            fits = step == self.hop
        else:
            step = encoder.hop
            fits = self.hop % step == 0
        if not fits:
            raise UserError(
                f"codec {self.name}: encoder steps of {step} samples do not make its hop of "
                f"{self.hop}; change the encoder's strides or hop"
            )
        if math.prod(self.semantic.strides) * self.frame_rate != 50:
            raise UserError(
                f"codec {self.name}: semantic.strides {list(self.semantic.strides)} do not bring "
                f"50 Hz to {self.frame_rate} frames/s; change the strides"
            )

    @property
    def hop(self) -> int:
        """Samples per codec frame."""
        return int(self.sample_rate / self.frame_rate)

    @property
    def feature_stride(self) -> int:
        """SSL frames (50 Hz) per codec frame."""
        return int(50 / self.frame_rate)

    @property
    def bitrate(self) -> float:
        """Bits per second of both streams at `frame_rate`, segment lengths not counted."""
        bits = (self.quantiser.codebook_size - 1).bit_length()
        codebooks = self.quantiser.codebooks + self.semantic_quantiser.codebooks
        return self.frame_rate * codebooks * bits

    @property
    def semantic_quantiser(self) -> QuantiserConfig:
        """`quantiser` with the codebooks of the semantic stream."""
        if self.semantic_codebooks is None:
            return self.quantiser
        return replace(self.quantiser, codebooks=self.semantic_codebooks)

    def with_encoder(self, folder: str | None) -> "HCodecConfig":
        """The same, with the encoder of its features in `folder`."""
        return replace(self, features=replace(self.features, folder=folder))

    @classmethod
    def preset(cls, name: str) -> "HCodecConfig":
        """The config called `name`: "1.0", "1.5", "2.0", "2.0-6.25hz" or "tiny"."""
        if name not in _PRESETS:
            raise UserError(f"codec preset {name!r}: unknown, choose one of {', '.join(_PRESETS)}")
        return _PRESETS[name]


_HUBERT = FeatureConfig(kind="hugging_face", compress=True)

_V1_0 = HCodecConfig(
    name="1.0",
    sample_rate=16000,
    frame_rate=25.0,
    features=_HUBERT,
    encoder=SeanetConfig(),
    semantic=SemanticConfig(),
    quantiser=QuantiserConfig(),
    decoder=DecoderConfig(),
)

_V1_5 = HCodecConfig(
    name="1.5",
    sample_rate=16000,
    frame_rate=25.0,
    features=replace(_HUBERT, layers=(11, 14, 16)),
    encoder=SeanetConfig(strides=(8, 5, 4, 2)),
    semantic=SemanticConfig(channels=1024, width=1024),
    quantiser=QuantiserConfig(),
    decoder=DecoderConfig(width=1024, mlp=4096),
    dynamic=DynamicConfig(),
)

_V2_0 = HCodecConfig(
    name="2.0",
    sample_rate=48000,
    frame_rate=12.5,
    features=_HUBERT,
    encoder=SpectralConfig(),
    semantic=SemanticConfig(width=1536, strides=(2, 1, 2)),
    quantiser=QuantiserConfig(codebooks=16, dropout=False),
    decoder=DecoderConfig(
        width=1536,
        inner=4608,
        blocks=32,
        heads=24,
        mlp=4096,
        n_fft=1920,
        hop=960,
        upsample=4,
        repeat=True,
    ),
)

_V2_0_SLOW = replace(
    _V2_0,
    name="2.0-6.25hz",
    frame_rate=6.25,
    semantic=replace(_V2_0.semantic, strides=(2, 2, 2)),
    decoder=replace(_V2_0.decoder, upsample=8),
)

# The 2.0 shape at 16 kHz, small enough for a CPU. Log-mel features stand in for those of a
# speech model, so that it needs no downloaded weights.
_TINY = HCodecConfig(
    name="tiny",
    sample_rate=16000,
    frame_rate=25.0,
    features=FeatureConfig(kind="log_mel"),
    encoder=SpectralConfig(n_fft=640, hop=320, width=96, inner=288, blocks=3, layers=1, heads=4),
    semantic=SemanticConfig(channels=80, width=96, strides=(2,)),
    quantiser=QuantiserConfig(
        codebooks=4, codebook_size=256, width=64, dropout=False, dead_code_threshold=0.2
    ),
    decoder=DecoderConfig(
        width=128,
        inner=384,
        blocks=4,
        layers=1,
        heads=4,
        mlp=384,
        n_fft=640,
        hop=320,
        upsample=2,
        repeat=True,
    ),
)

_PRESETS = {config.name: config for config in (_V1_0, _V1_5, _V2_0, _V2_0_SLOW, _TINY)}

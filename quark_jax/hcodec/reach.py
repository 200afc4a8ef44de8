"""How far H-Codec's convolutions see: what a window of a long recording needs around it.

The LSTMs hear all that went before, attention and GroupNorm all there is; they are not counted.
"""

from quark_jax.hcodec.config import HCodecConfig, SeanetConfig


def encoder_reach(config: HCodecConfig) -> float:
    """Seconds to either side of a frame that its embeddings depend on through convolutions."""
    encoder = config.encoder
    if isinstance(encoder, SeanetConfig):
        # Half a kernel at each stride so far: k7, then k3 and k = 2r for each stride r.
        samples, step = 3, 1
        for stride in encoder.strides:
            samples += step * (1 + stride)
            step *= stride
        samples += step * encoder.last_stride
    else:
        frames = 1 + 3 * encoder.blocks + config.hop // encoder.hop
        samples = encoder.n_fft // 2 + encoder.hop * frames
    # Likewise the semantic coder, at 50 Hz: k3; two k3 and one strided at each stage; k3.
    frames, step = 1, 1
    for stride in config.semantic.strides:
        frames += step * (2 + (1 if stride == 1 else stride))
        step *= stride
    frames += step
    return max(samples / config.sample_rate, frames / 50)


def decoder_reach(config: HCodecConfig) -> float:
    """Seconds to either side of a frame that its wave depends on through convolutions."""
    decoder = config.decoder
    # Upsampling, four residual blocks of two k3, ConvNeXt blocks of k7, overlapping windows.
    frames = decoder.upsample + 2 + 8 + 3 * decoder.blocks + decoder.n_fft // decoder.hop
    return frames * decoder.hop / config.sample_rate

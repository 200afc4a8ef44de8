"""H-Codec whole: wave and features to codes, and back."""

import json
from collections.abc import Mapping
from types import SimpleNamespace as Config

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .layers import transformer
from .parts import (
    Aggregator,
    Quantiser,
    decoder,
    seanet,
    segment_lengths,
    semantic_decoder,
    semantic_encoder,
    spectral,
)


class HCodec(nn.Module):
    """The H-Codec of a configuration, which is what codec.json holds.

    Its parts are read as attributes: `codec.config.decoder.width`.
    """

    def __init__(self, config: Mapping):
        super().__init__()
        config = json.loads(json.dumps(config), object_hook=lambda part: Config(**part))
        dim, dynamic = config.quantiser.width, config.dynamic
        self.config = config
        self.hop = round(config.sample_rate / config.frame_rate)  # samples per codec frame
        if hasattr(config.encoder, "filters"):
            self.encoder = seanet(config.encoder, dim)
        else:
            self.encoder = spectral(config.encoder, dim, self.hop // config.encoder.hop)
        self.decoder = decoder(config.decoder, 2 * dim)
        books = config.quantiser.codebooks
        self.quantizer = Quantiser(config.quantiser, books)
        own = getattr(config, "semantic_codebooks", None)
        self.semantic_quantizer = Quantiser(config.quantiser, books if own is None else own)
        self.semantic_encoder = semantic_encoder(config.semantic, dim)
        self.semantic_decoder = semantic_decoder(config.semantic, dim)
        if dynamic:
            size = dynamic.heads, dynamic.bottleneck_inner, dynamic.bottleneck_layers
            self.bottleneck_transformer = transformer(2 * dim, *size)
            size = dynamic.heads, dynamic.aggregator_inner, dynamic.aggregator_layers
            self.semantic_aggregator = Aggregator(dim, *size)
            self.acoustic_aggregator = Aggregator(dim, *size)

    @torch.no_grad()
    def encode(
        self, wave: Tensor, features: Tensor, threshold: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes of a wave [batch, samples] with compressed features [batch, channels, 50 Hz].

        Returns acoustic and semantic codes [batch, codebooks, groups], and the frames per group
        [batch, groups]: 0 at padding, None where the frame rate is fixed. Published 1.5 codes hold
        (frames - 1) * codebook_size + code in one number.
        """
        acoustic, semantic = self.embed(wave, features)
        dynamic = self.config.dynamic
        if not dynamic:
            return self.quantizer.encode(acoustic), self.semantic_quantizer.encode(semantic), None
        threshold = dynamic.threshold if threshold is None else threshold
        items = []  # one at a time, so that no item sees the padding of another
        for a, s in zip(acoustic.split(1), semantic.split(1), strict=True):
            lengths = segment_lengths(s[0], threshold, dynamic.longest)
            a, s = self.acoustic_aggregator(a, lengths), self.semantic_aggregator(s, lengths)
            codes = self.quantizer.encode(a)[0].T, self.semantic_quantizer.encode(s)[0].T
            items.append((*codes, torch.tensor(lengths, device=wave.device)))
        acoustic, semantic, lengths = (
            pad_sequence(list(parts), batch_first=True) for parts in zip(*items, strict=True)
        )
        return acoustic.transpose(1, 2), semantic.transpose(1, 2), lengths

    @torch.no_grad()
    def decode(self, acoustic: Tensor, semantic: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `encode` gave -> wave [batch, samples], with zeros after the shorter items."""
        if (lengths is None) != (self.config.dynamic is None):
            raise ValueError("lengths: give them where the frame rate is dynamic, and only there")
        if lengths is None:
            return self.decoder(torch.cat(self.dequantise(acoustic, semantic), dim=1))
        waves = []
        for a, s, n in zip(acoustic.split(1), semantic.split(1), lengths, strict=True):
            streams = torch.cat(self.dequantise(a, s, n), dim=1)
            waves.append(self.decoder(self.bottleneck_transformer(streams))[0])
        return pad_sequence(waves, batch_first=True)

    @torch.no_grad()
    def embed(self, wave: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Acoustic and semantic embeddings [batch, dim, frames]."""
        wave = F.pad(wave, (0, -wave.shape[-1] % self.hop))
        need, have = wave.shape[-1] * 50 // self.config.sample_rate, features.shape[-1]
        if have != need:
            raise ValueError(
                f"features: {have} frames, but the wave needs {need}; compute them from the wave "
                f"zero-padded to a multiple of {self.hop} samples"
            )
        return self.encoder(wave), self.semantic_encoder(features)

    @torch.no_grad()
    def dequantise(
        self, acoustic: Tensor, semantic: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Quantised streams [batch, dim, frames]; `lengths` [groups] hold for the whole batch."""
        streams = self.quantizer.decode(acoustic), self.semantic_quantizer.decode(semantic)
        if lengths is None:
            return streams
        return tuple(stream.repeat_interleave(lengths, dim=-1) for stream in streams)

"""H-Codec inference in PyTorch: a folder that needs nothing but torch, wherever it is put.

    codec = HCodec(json.loads(Path("codec.json").read_text()))
    codec.load_state_dict(torch.load("codec.pt"))  # or safetensors.torch.load_file(...)
    acoustic, semantic, lengths = codec.encode(wave, features)
    wave = codec.decode(acoustic, semantic, lengths)

It runs what `quark export` writes. Tensors bear the names of the published checkpoints; as an
independent check of the JAX model it shares nothing with that but the configuration. Tensors are
[batch, channels, time] unless said otherwise. Dropout is left out.
"""

from .layers import ReflectConv
from .model import HCodec
from .parts import ISTFT, STFT, Aggregator, Codebook, Quantiser, compress, segment_lengths

__all__ = [
    "ISTFT",
    "STFT",
    "Aggregator",
    "Codebook",
    "HCodec",
    "Quantiser",
    "ReflectConv",
    "compress",
    "segment_lengths",
]

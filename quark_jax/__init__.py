"""QuarkAudio in JAX: the H-Codec neural codec and one language model for every audio task."""

__version__ = "0.1.0"

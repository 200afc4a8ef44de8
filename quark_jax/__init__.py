"""QuarkAudio in JAX: the H-Codec neural codec, and a language model on its tokens for many audio
tasks."""

__version__ = "0.1.0"

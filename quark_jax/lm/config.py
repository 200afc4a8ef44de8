"""Configuration of the language model."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from quark_jax.lm.tasks import TASKS


@dataclass(frozen=True)
class LMConfig:
    """Everything that fixes the language model's parameters and what it computes.

    Attributes:
      layers, width, heads, mlp: depth, model width, attention heads, inner width of the MLP.
      kv_heads: key/value heads, a divisor of `heads` (fewer: grouped-query attention).
      rope_theta, norm_epsilon: as `rope_theta` and `rms_norm_eps` of LlamaConfig.
      codebooks: codec layers in each stream (N).
      acoustic_size, semantic_size: entries of one codebook of each stream.
      max_segment: longest segment of a codec with dynamic frame rate, in frames; a code then
        carries its length, code + size * (length - 1). 1 for a fixed rate.
      order: which stream of a frame comes first.
      pattern: "delay", "parallel" or "flat" (see `quark_jax.lm.patterns`).
      label_smoothing: weight of the uniform distribution in the training target.
      audio_channels: channels of the features of audio sections, which come at 50 Hz.
      stack_features: put two neighbouring feature frames in one position, 25 Hz.
      step_stride: None numbers the rotary positions through the sequence. A number lets step 0
        stand at the position of the input's first frame, and the steps so many positions apart:
        with the rate of the input's positions over that of the steps (0.5 for 25 Hz beside 50
        steps a second), each step stands beside the input of its time, however long it is.
      beside: also add the input to the steps, to each what it has at the time of the step, by a
        convolution over three of its positions. Needs `step_stride`. A model learns to follow its
        input by the prefix alone too, but a small one only after a long time.
      text_channels: width of the hidden states of captions; 0 where no task has a caption.
      task_rows: rows of the table of task vectors: those of `TASKS`, and room for your own.
      dtype: compute dtype, "float32" or "bfloat16" (parameters, softmax and loss are float32).
      attention: of whole sequences, "xla", "splash" (a TPU kernel, rows of whole 128 positions) or
        "auto", that kernel in steps for TPUs where it fits (see `quark_jax.lm.attention`).
      scan, remat: how the layers are stored and what is recomputed (see `quark_jax.nn.stack`); with
        `remat` the loss too takes one codebook at a time, whose logits are recomputed.
    """

    layers: int = 12
    width: int = 512
    heads: int = 8
    kv_heads: int = 8
    mlp: int = 1408
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    codebooks: int = 4
    acoustic_size: int = 1024
    semantic_size: int = 1024
    max_segment: int = 1
    order: tuple[str, str] = ("acoustic", "semantic")
    pattern: str = "delay"
    label_smoothing: float = 0.1
    audio_channels: int = 768
    stack_features: bool = False
    step_stride: float | None = None
    beside: bool = False
    text_channels: int = 0
    task_rows: int = 16
    dtype: str = "float32"
    attention: str = "auto"
    scan: bool = False
    remat: str | None = None

    def __post_init__(self):
        def need(fits: bool, problem: str):
            if not fits:
                raise ValueError(f"LMConfig: {problem}")

        for field in ("layers", "codebooks", "acoustic_size", "semantic_size", "max_segment"):
            need(getattr(self, field) > 0, f"{field} must be positive, not {getattr(self, field)}")
        need(
            self.width % (2 * self.heads) == 0,
            f"width {self.width} must be an even multiple of heads {self.heads}",
        )
        need(
            self.heads % self.kv_heads == 0,
            f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}",
        )
        need(
            sorted(self.order) == ["acoustic", "semantic"],
            f"order {self.order} must name acoustic and semantic once each",
        )
        need(
            self.pattern in ("delay", "parallel", "flat"),
            f"pattern {self.pattern!r} must be delay, parallel or flat",
        )
        need(
            0 <= self.label_smoothing < 1,
            f"label_smoothing {self.label_smoothing} must be in [0, 1)",
        )
        need(
            self.dtype in ("float32", "bfloat16"),
            f"dtype {self.dtype!r} must be float32 or bfloat16",
        )
        need(
            self.step_stride is None or (self.step_stride > 0 and self.max_segment == 1),
            f"step_stride {self.step_stride} must be positive, and None with a dynamic frame rate "
            "(its steps are not equally long)",
        )
        need(
            not self.beside or self.step_stride is not None,
            "beside needs a step_stride: at which position of the input a step stands",
        )
        need(
            self.attention in ("auto", "xla", "splash"),
            f"attention {self.attention!r} must be auto, xla or splash",
        )
        need(
            self.task_rows >= len(TASKS),
            f"task_rows {self.task_rows} must be at least {len(TASKS)}, one for each task",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as JAX names it."""
        return jnp.dtype(self.dtype)

    @classmethod
    def preset(cls, name: str, **changes) -> "LMConfig":
        """A named size ("tiny", "small", "base", "large"), with fields changed by keyword.

        tiny takes log-mel features and trains on a CPU; small is the size of the published
        speech-enhancement model. Raises ValueError for a name there is not.
        """
        if name not in _PRESETS:
            raise ValueError(f"LMConfig preset {name!r}: choose one of {', '.join(_PRESETS)}")
        return replace(_PRESETS[name], **changes)


_PRESETS = {
    "tiny": LMConfig(
        layers=4,
        width=256,
        heads=4,
        kv_heads=4,
        mlp=704,
        audio_channels=80,
    ),
    "small": LMConfig(),
    "base": LMConfig(layers=16, width=1024, heads=16, kv_heads=16, mlp=2816),
    "large": LMConfig(
        layers=24,
        width=2048,
        heads=32,
        kv_heads=32,
        mlp=5632,
        dtype="bfloat16",
        scan=True,
        remat="full",
    ),
}

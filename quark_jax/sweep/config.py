"""What a sweep compares, and at what size."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from data_pipelines import Degradation
from quark_jax.errors import UserError
from quark_jax.evaluation.codec import METRICS, SECONDS_MAX, SECONDS_MIN
from quark_jax.hcodec import HCodecConfig
from quark_jax.training.codec import CodecData, CodecTraining
from quark_jax.training.codec_step import LearningConfig
from quark_jax.training.lm import LMTraining
from quark_jax.training.loop import RunConfig


@dataclass(frozen=True)
class Point:
    """A codec at one setting. Points of one codec share its training.

    Of a codec with a dynamic frame rate, `threshold` is where segments begin; or `rate` is what the
    threshold is chosen for, in segments a second of the clips that the point is judged on.
    """

    name: str  # a folder is called so
    codec: str  # of the sweep's codecs
    threshold: float | None = None
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class CodecStage(LearningConfig):
    """How each codec is trained; `CodecTraining` but for the codec and the manifest."""

    data: CodecData = field(default_factory=CodecData)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Tokens:
    """What the language models learn: to restore speech (task sr)."""

    seconds: float = 2.56  # of an example; whole frames of every codec
    train: int = 1024  # examples to learn from
    heldout: int = 64  # and to evaluate on
    seed: int = 0
    degradation: Degradation = field(default_factory=Degradation)


@dataclass(frozen=True)
class Listening:
    """What the codecs are evaluated on: clips of split "heldout", evenly over speakers."""

    clips: int = 50  # at most
    seconds: tuple[float, float] = (SECONDS_MIN, SECONDS_MAX)  # of a clip, least and most
    metrics: tuple[str, ...] = tuple(METRICS)  # of quark_jax.evaluation.codec
    words: int = 50  # recordings with aligned words, at most, that segments are counted in
    seed: int = 0

    def __post_init__(self):
        if self.clips < 1 or self.words < 1:
            raise UserError(f"listening: clips {self.clips}, words {self.words}; set at least 1")
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(
                    f"listening.metrics: {name!r} is unknown; choose of {', '.join(METRICS)}"
                )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep.

    `series` are lines of the plots: points by name, in the order in which a line joins them.
    `manifest`, `alignments` (a CTM file or a folder of TextGrids; None leaves out what is said of
    words) and `encoder`, the folder of the encoder of the codecs' features where they have one, are
    the user's own.
    """

    title: str
    points: tuple[Point, ...]
    codecs: tuple[HCodecConfig, ...]
    series: Mapping[str, tuple[str, ...]]
    codec: CodecStage
    lm: LMTraining
    tokens: Tokens = field(default_factory=Tokens)
    listening: Listening = field(default_factory=Listening)
    manifest: str = ""
    alignments: str | None = None
    encoder: str | None = None

    def __post_init__(self):
        _check_names("points", [point.name for point in self.points])
        _check_names("codecs", [codec.name for codec in self.codecs])
        known = {codec.name: codec for codec in self.codecs}
        for point in self.points:
            if point.codec not in known:
                raise UserError(
                    f"point {point.name}: codec {point.codec!r} is unknown; choose of "
                    + ", ".join(known)
                )
            _check_threshold(point, known[point.codec])
        names = {point.name for point in self.points}
        for line, joined in self.series.items():
            if unknown := sorted(set(joined) - names):
                raise UserError(f"series {line!r}: there is no point {unknown[0]}; name points")
        self._check_stages()

    def _check_stages(self) -> None:
        data, tokens = self.lm.data, self.tokens
        for name, set_to in {
            "codec.data.manifest": self.codec.data.manifest,
            "lm.data.dataset": data.dataset,
            "lm.data.codec": data.codec,
            "lm.data.weights": data.weights,
            "lm.start": self.lm.start,
        }.items():
            if set_to:
                raise UserError(f"{name}: the sweep sets it; leave it out")
        if tokens.train < 1 or tokens.heldout < 1 or tokens.heldout % data.batch_size:
            raise UserError(
                f"tokens: train {tokens.train}, heldout {tokens.heldout}; set at least 1, and "
                f"heldout to a multiple of lm.data.batch_size ({data.batch_size})"
            )
        if data.heldout != tokens.heldout:
            raise UserError(
                f"lm.data.heldout: {data.heldout}; set it to tokens.heldout ({tokens.heldout})"
            )
        for codec in self.codecs:
            frames = tokens.seconds * codec.frame_rate
            if frames < 1 or abs(frames - round(frames)) > 1e-6:
                raise UserError(
                    f"tokens.seconds: {tokens.seconds:g} s are {frames:g} frames of codec "
                    f"{codec.name}; choose whole frames of every codec"
                )
            if codec.semantic_quantiser.codebooks != codec.quantiser.codebooks:
                raise UserError(
                    f"codec {codec.name}: semantic_codebooks {codec.semantic_codebooks}; the "
                    "language model needs as many as acoustic ones, leave it out"
                )

    def codec_of(self, point: Point) -> HCodecConfig:
        """The codec of a point, with the encoder of its features."""
        [codec] = (codec for codec in self.codecs if codec.name == point.codec)
        return codec.with_encoder(self.encoder) if self.encoder else codec

    def training_of(self, codec: HCodecConfig) -> CodecTraining:
        """How a codec is trained."""
        stage = {part.name: getattr(self.codec, part.name) for part in fields(self.codec)}
        stage["data"] = replace(self.codec.data, manifest=self.manifest)
        return CodecTraining(codec=codec, **stage)


def _check_names(kind: str, names: list[str]) -> None:
    if not names:
        raise UserError(f"{kind}: there are none; name at least one")
    for name in names:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{kind}: {name!r} cannot name a folder; use letters, digits, . + - _")
        if names.count(name) > 1:
            raise UserError(f"{kind}: {name!r} occurs {names.count(name)} times; name each once")


def _check_threshold(point: Point, codec: HCodecConfig) -> None:
    given = [value for value in (point.threshold, point.rate) if value is not None]
    if codec.dynamic is None and given:
        raise UserError(
            f"point {point.name}: codec {codec.name} has a fixed frame rate; leave out threshold "
            "and rate"
        )
    if codec.dynamic is not None and len(given) != 1:
        raise UserError(
            f"point {point.name}: codec {codec.name} has a dynamic frame rate; give a threshold, "
            "or a rate to choose one for"
        )
    if point.threshold is not None and not -1 <= point.threshold <= 1:
        raise UserError(f"point {point.name}: threshold {point.threshold}; choose one of -1 to 1")
    if point.rate is not None and not (
        codec.frame_rate / codec.dynamic.longest <= point.rate <= codec.frame_rate
    ):
        raise UserError(
            f"point {point.name}: rate {point.rate:g}; codec {codec.name} has "
            f"{codec.frame_rate / codec.dynamic.longest:g} to {codec.frame_rate:g} segments/s"
        )

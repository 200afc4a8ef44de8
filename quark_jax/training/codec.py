"""Training H-Codec: `train(config, workdir)`, top to bottom."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from statistics import mean

import jax
import numpy as np
from etils import epath

from data_pipelines import Entry, codec_batches, read_manifest
from quark_jax.audio import resample_sinc
from quark_jax.config import to_dict
from quark_jax.distributed import by_first, whole
from quark_jax.encoders import SSLFeatures
from quark_jax.errors import UserError
from quark_jax.evaluation import mel_distance, si_sdr, stoi
from quark_jax.hcodec import Codes, HCodec, HCodecConfig, Tokeniser
from quark_jax.training.codec_step import CodecLearning, CodecState, Frozen, LearningConfig
from quark_jax.training.loop import RunConfig, fit
from quark_jax.training.sharding import batch_part, make_mesh


@dataclass(frozen=True)
class CodecData:
    """What a codec is trained on."""

    manifest: str = ""  # recordings; those of split "heldout" are kept for evaluation
    weights: dict[str, float] | None = None  # of domains: {"speech": 2, "music": 1, "audio": 1}
    seconds: float = 2.0  # of a cut
    batch_size: int = 8  # cuts, over all devices
    workers: int = 0  # processes that read; 0 reads in threads
    heldout: int = 16  # clips evaluated on, at most
    heldout_seconds: float = 4.0


@dataclass(frozen=True, kw_only=True)
class CodecTraining(LearningConfig):
    """One run of codec training."""

    codec: HCodecConfig
    data: CodecData = field(default_factory=CodecData)
    run: RunConfig = field(default_factory=RunConfig)


def train(config: CodecTraining, workdir: str | PathLike) -> Tokeniser:
    """Train, or go on training, in `workdir`; the codec is left in `workdir`/model/codec, and the
    discriminators that it was trained against, if any, in adversary.safetensors there.

    Raises UserError where the data or the config cannot be used, or where the run has gone astray
    (`fit`).
    """
    codec_config, data = config.codec, config.data
    features = SSLFeatures(codec_config.features)
    if features.channels != codec_config.semantic.channels:
        raise UserError(
            f"codec.semantic.channels: {codec_config.semantic.channels}, but the features have "
            f"{features.channels}; make them equal"
        )
    frozen = Frozen(features)
    if config.perceptual and config.perceptual.features.folder != codec_config.features.folder:
        frozen = Frozen(features, SSLFeatures(config.perceptual.features))
    training, heldout = _split(data.manifest)
    mesh = make_mesh(config.run.mesh)
    part, parts = batch_part(mesh)
    batches = codec_batches(
        training,
        rate=codec_config.sample_rate,
        seconds=whole_frames(data.seconds, codec_config) / codec_config.sample_rate,
        batch_size=data.batch_size,
        seed=config.run.seed,
        weights=data.weights,
        shard_index=part,
        shard_count=parts,
        num_workers=data.workers,
    )
    learning = CodecLearning(codec_config, config, config.run.seed)
    state = fit(
        learning.init,
        learning.step,
        batches,
        run=config.run,
        mesh=mesh,
        config=to_dict(config),
        workdir=workdir,
        evaluate=_evaluation(config, learning, features, heldout),
        label="codec",
        frozen=frozen,
        phase=lambda number: (learning.begun(number),),
    )
    tokeniser = Tokeniser(whole(learning.codec(state)), features)
    adversary = whole(learning.adversary(state))

    def save() -> None:
        folder = epath.Path(workdir) / "model" / "codec"
        tokeniser.save(folder)
        if adversary:
            adversary.save(folder)

    by_first(save)
    return tokeniser


def _split(manifest: str) -> tuple[list[Entry], list[Entry]]:
    entries = read_manifest(manifest)
    heldout = [entry for entry in entries if entry.split == "heldout"]
    training = [entry for entry in entries if entry.split != "heldout"]
    if not training or not heldout:
        raise UserError(
            f"{manifest}: {len(training)} recordings to train on and {len(heldout)} of split "
            '"heldout"; both are needed, set the split of some lines'
        )
    return training, heldout


def whole_frames(seconds: float, codec: HCodecConfig) -> int:
    """Samples of the whole codec frames nearest to `seconds`, at least one."""
    return max(1, round(seconds * codec.frame_rate)) * codec.hop


def _evaluation(
    config: CodecTraining, learning: CodecLearning, features: SSLFeatures, heldout: list[Entry]
) -> Callable[[CodecState, int], dict[str, float]]:
    """What `fit` calls: metrics of the held-out clips after encoding and decoding."""
    rate, data = config.codec.sample_rate, config.data
    samples = whole_frames(data.heldout_seconds, config.codec)
    waves = np.stack(
        list(
            codec_batches(
                heldout[: data.heldout],
                rate=rate,
                seconds=samples / rate,
                batch_size=1,
                train=False,
            )
        )
    )[:, 0]

    @jax.jit
    def round_trip(codec: HCodec, features: SSLFeatures, wave: jax.Array):
        embedding = codec.embed(wave, features(resample_sinc(wave, rate, 16000)))
        acoustic = codec.quantiser.encode(embedding.acoustic)
        semantic = codec.semantic_quantiser.encode(embedding.semantic)
        codes = Codes(acoustic, semantic, embedding.lengths)
        return codec.decode(codes, wave.shape[1] // config.codec.hop), embedding.lengths

    def evaluate(state: CodecState, number: int) -> dict[str, float]:
        estimates, lengths = whole(round_trip(learning.codec(state), features, waves))
        pairs = list(zip(waves, np.asarray(estimates), strict=True))
        metrics = {
            "heldout/mel_distance": mean(mel_distance(a, b, rate) for a, b in pairs),
            "heldout/si_sdr": mean(si_sdr(a, b) for a, b in pairs),
            "heldout/stoi": mean(stoi(a, b, rate) for a, b in pairs),
        }
        if lengths is not None:
            frames = np.count_nonzero(np.asarray(lengths))
            metrics["heldout/frame_rate"] = frames / (waves.size / rate)
        return metrics

    return evaluate

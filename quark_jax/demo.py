"""`quark demo`: the whole system at toy size, on the recordings that come with it."""

import json
import shutil
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines import Degradation, SpeechRestoration, read_manifest, samples_manifest, tokenise
from data_pipelines.simulation import add_noise, coloured_noise
from quark_jax import audio
from quark_jax.evaluation import mel_distance, si_sdr, stoi
from quark_jax.evaluation.pictures import compare
from quark_jax.files import replacing
from quark_jax.hcodec import HCodecConfig, Tokeniser
from quark_jax.lm import LMConfig
from quark_jax.pipeline import QuarkAudio
from quark_jax.training import codec as codec_training
from quark_jax.training import lm as lm_training
from quark_jax.training.lm_data import LMData
from quark_jax.training.loop import RunConfig
from quark_jax.training.metrics import read_metrics
from quark_jax.training.optimiser import OptimiserConfig

CODEC_STEPS = 600
LM_STEPS = 700
SECONDS = 2.56  # of a sequence
EXAMPLES = {"train": 1024, "heldout": 64}
# Noise, clipping and lost packets alone: what so small a model can learn of in minutes.
DEGRADATION = Degradation(
    interference_probability=0.0, reverberation_probability=0.0, bandwidth_probability=0.0
)
SNR_DB = 5.0  # of the recording that is restored, in pink noise


def demo(
    workdir: str | PathLike, *, codec_steps: int = CODEC_STEPS, lm_steps: int = LM_STEPS
) -> None:
    """Run all stages in `workdir`; each goes on where an earlier run was interrupted."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    manifest = _prepare(workdir / "corpus")
    tokeniser = codec_training.train(codec_config(manifest, codec_steps), workdir / "codec")
    _tokenise(manifest, tokeniser, workdir / "tokens")
    quark = lm_training.train(_lm_config(workdir, lm_steps), workdir / "lm")
    quark.save(workdir / "model")
    _report(workdir, _restore(workdir, manifest, quark))


def _prepare(folder: Path) -> Path:
    """Copy the recordings and their manifest into `folder`, each decoded once to see that it can
    be used."""
    folder.mkdir(exist_ok=True)
    entries = read_manifest(samples_manifest())
    for entry in tqdm(entries, desc="corpus", unit="file"):
        entry.read(16000)
        copy = folder / entry.path.name
        if not copy.exists():
            with replacing(copy) as beside:
                shutil.copyfile(entry.path, beside)
    manifest = folder / samples_manifest().name
    with replacing(manifest) as beside:
        shutil.copyfile(samples_manifest(), beside)
    return manifest


def codec_config(manifest: Path, steps: int = CODEC_STEPS) -> codec_training.CodecTraining:
    """How the demo trains its codec."""
    return codec_training.CodecTraining(
        codec=HCodecConfig.preset("tiny"),
        data=codec_training.CodecData(manifest=str(manifest), seconds=1.0, batch_size=8),
        optimiser=OptimiserConfig(peak=1e-3, warmup=60, decay=0.998, floor=0.1, beta1=0.8),
        run=RunConfig(steps=steps, log_every=20, eval_every=200, save_every=100),
    )


def _lm_config(workdir: Path, steps: int) -> lm_training.LMTraining:
    return lm_training.LMTraining(
        # Two positions a codec frame before and after [S]: what belongs together lies a constant
        # distance apart, which a small model learns soon.
        lm=LMConfig.preset("tiny", layers=3, width=128, mlp=352, stack_features=False),
        data=LMData(
            dataset=str(workdir / "tokens"),
            codec=str(workdir / "codec" / "model" / "codec"),
            batch_size=8,
        ),
        optimiser=OptimiserConfig(
            peak=2e-3, warmup=30, decay=0.997, floor=0.05, beta2=0.98, weight_decay=0.1
        ),
        run=RunConfig(steps=steps, log_every=20, eval_every=200, save_every=100),
    )


def _tokenise(manifest: Path, tokeniser: Tokeniser, folder: Path) -> None:
    entries = read_manifest(manifest)
    sources = {
        split: SpeechRestoration(
            [entry for entry in entries if entry.split == split],
            rate=tokeniser.config.sample_rate,
            seconds=SECONDS,
            seed=seed,
            length=EXAMPLES[split],
            config=DEGRADATION,
        )
        for seed, split in enumerate(EXAMPLES)
    }
    tokenise(
        sources,
        tokeniser.encode_batch,
        folder,
        codec=tokeniser.config.name,
        codec_hash=tokeniser.weights_hash,
        examples_per_shard=256,
    )


def _restore(workdir: Path, manifest: Path, quark: QuarkAudio) -> dict[str, dict[str, float]]:
    """Restore a held-out recording with noise added; wav files and a picture go to
    `workdir`/results, and metrics of each wave against the clean one come back. What is restored is
    the file, so that `quark restore` makes the same of it."""
    folder = workdir / "results"
    folder.mkdir(exist_ok=True)
    heldout = [entry for entry in read_manifest(manifest) if entry.split == "heldout"]
    entry = max(heldout, key=lambda entry: entry.seconds)
    rate = quark.tokeniser.config.sample_rate
    clean = entry.read(rate)
    rng = np.random.default_rng(0)
    noisy = add_noise(clean, coloured_noise(len(clean), 1.0, rng), SNR_DB, rate)
    audio.write(folder / "noisy.wav", noisy, rate)
    noisy, _ = audio.read(folder / "noisy.wav")
    restored = quark.restore(noisy, rate, progress=lambda b: tqdm(b, desc="restoring"))
    coded, _ = quark.tokeniser.decode(quark.tokeniser.encode(clean, rate))
    waves = {
        f"noisy ({SNR_DB:g} dB)": noisy,
        "restored": restored,
        "clean": clean,
        "clean through the codec": coded,
    }
    for name, wave in waves.items():
        audio.write(folder / f"{name.split(' (')[0].replace(' ', '_')}.wav", wave, rate)
    compare(folder / "comparison.png", dict(list(waves.items())[:3]), rate)
    return {
        name: {
            "mel distance": mel_distance(clean, wave, rate),
            "SI-SDR (dB)": si_sdr(clean, wave),
            "STOI": stoi(clean, wave, rate),
        }
        for name, wave in waves.items()
        if wave is not clean
    }


def _report(workdir: Path, waves: dict[str, dict[str, float]]) -> None:
    """Write and print the table of losses and metrics."""
    columns = ("before training", "after training")
    codec = [row for row in read_metrics(workdir / "codec") if "heldout/stoi" in row]
    lm = [row for row in read_metrics(workdir / "lm") if "heldout/nats_per_code" in row]
    rows = [
        ("codec, held-out mel distance", "heldout/mel_distance", codec),
        ("codec, held-out SI-SDR (dB)", "heldout/si_sdr", codec),
        ("codec, held-out STOI", "heldout/stoi", codec),
        ("language model, held-out loss (nats per code)", "heldout/nats_per_code", lm),
        ("unigram model, held-out loss (nats per code)", "heldout/unigram_nats_per_code", lm),
    ]
    lines = [f"| | {' | '.join(columns)} |", "|---|---|---|"]
    lines += [f"| {name} | {run[0][key]:.3f} | {run[-1][key]:.3f} |" for name, key, run in rows]
    names = list(next(iter(waves.values())))
    lines += ["", f"| against the clean recording | {' | '.join(names)} |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in metrics.values())} |"
        for name, metrics in waves.items()
    ]
    text = "\n".join(lines)
    results = workdir / "results"
    with replacing(results / "table.md") as beside:
        beside.write_text(text + "\n")
    with replacing(results / "metrics.json") as beside:
        beside.write_text(json.dumps({"codec": codec[-1], "lm": lm[-1], "waves": waves}, indent=1))
    print(f"\n{text}\n\n{results}: wav files, comparison.png and this table")

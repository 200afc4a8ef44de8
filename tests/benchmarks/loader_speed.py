"""What a tokenised dataset costs to keep and to read:

    python tests/benchmarks/loader_speed.py corpus/manifest.jsonl --codec runs/x/model/codec

Makes datasets of task tse (an input and a reference of 5 s each) that keep audio, features of 768
channels, or codes alone, and prints their bytes and how fast batches come out of them with 0, 1 and
2 worker processes. The features are log-mel bands through a fixed random matrix: as large as those
of a base-size speech encoder, and as hard to compress.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipelines import Example, TokenisedDataset, read_manifest, token_batches, tokenise
from data_pipelines.conditioning import Conditioner
from data_pipelines.examples.tasks import make_source
from quark_jax.encoders import FeatureConfig
from quark_jax.hcodec import Tokeniser

SECONDS, BATCH, ROUNDS = 5.0, 16, 5


class Alone:
    """The targets of a source, without what conditions them."""

    def __init__(self, source):
        self._source = source
        self.rate, self.seconds, self.skipped = source.rate, source.seconds, source.skipped

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return Example("tta", example.target, example.rate)

    def describe(self) -> dict:
        return self._source.describe() | {"alone": True}


def features_of_768():
    heard = Conditioner(FeatureConfig())
    matrix = np.random.default_rng(0).standard_normal((80, 768), np.float32) / 80**0.5
    return lambda waves, samples: heard(waves, samples) @ matrix


def make(folder: Path, options: argparse.Namespace) -> dict[str, TokenisedDataset]:
    codec = Tokeniser.load(options.codec)
    entries = read_manifest(options.manifest)
    source = make_source(
        "tse",
        [entry for entry in entries if entry.split == "train"],
        rate=codec.config.sample_rate,
        seconds=SECONDS,
        length=options.examples,
    )
    about = {"codec": codec.config.name, "codec_hash": codec.weights_hash, "hop": codec.config.hop}
    heard = {"features": features_of_768(), "encoder": "768 channels", "encoder_hash": "0"}
    return {
        "int16 audio": tokenise({"train": source}, codec.encode_batch, folder / "audio", **about),
        "features": tokenise({"train": source}, codec.encode_batch, folder / "f", **about, **heard),
        "codes alone": tokenise(
            {"train": Alone(source)}, codec.encode_batch, folder / "codes", **about
        ),
    }


def batches_per_second(dataset: TokenisedDataset, workers: int) -> float:
    """Median over rounds, after the first batches."""
    batches = token_batches(dataset, batch_size=BATCH, num_workers=workers)
    for _ in range(8):
        next(batches)
    rates = []
    for _ in range(ROUNDS):
        begun, taken = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < 2.0:
            next(batches)
            taken += 1
        rates.append(taken / passed)
    batches.close()
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--codec", required=True, help="folder of a codec")
    parser.add_argument("--examples", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        datasets = make(Path(folder), options)
        print("| kept | MB an hour of target | records/s with 0, 1, 2 workers | audio s/s |")
        print("|---|---|---|---|")
        for name, dataset in datasets.items():
            hours = dataset.metadata["statistics"]["hours"]
            size = sum(path.stat().length for path in dataset.path.glob("*array_record*"))
            records = [BATCH * batches_per_second(dataset, workers) for workers in (0, 1, 2)]
            print(
                f"| {name} | {size / hours / 1e6:.1f} | "
                f"{', '.join(f'{rate:.0f}' for rate in records)} | "
                f"{', '.join(f'{SECONDS * rate:.0f}' for rate in records)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

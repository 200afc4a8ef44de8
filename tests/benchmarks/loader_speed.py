"""What a tokenised dataset costs to keep and to read:

    python tests/benchmarks/loader_speed.py corpus/manifest.jsonl --codec runs/x/model/codec

Makes datasets of a task, 5 s an example, that keep audio, features of 768 channels, or codes alone,
and prints their bytes and how fast batches come out of them with so many worker processes. The
features are log-mel bands through a fixed random matrix: as large as those of a base-size speech
encoder, and as hard to compress.

`--need` are the seconds of target that training takes in each second, as measured on its
accelerator: the last column then is how many workers that wants, if each adds what the last ones
did. That is a guess for another machine, and none beyond its cores.
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
from data_pipelines.examples.tasks import make_source
from data_pipelines.features import FeatureEncoder
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
    heard = FeatureEncoder(FeatureConfig())
    matrix = np.random.default_rng(0).standard_normal((80, 768), np.float32) / 80**0.5
    return lambda waves, samples: heard(waves, samples) @ matrix


def make(folder: Path, options: argparse.Namespace) -> dict[str, TokenisedDataset]:
    codec = Tokeniser.load(options.codec)
    entries = read_manifest(options.manifest)
    source = make_source(
        options.task,
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


def batches_per_second(dataset: TokenisedDataset, workers: int, buckets: int) -> float:
    """Median over rounds, after the first batches."""
    batches = token_batches(dataset, batch_size=BATCH, buckets=buckets, num_workers=workers)
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


def workers_for(need: float, workers: list[int], seconds: list[float]) -> str:
    """How many workers give `need` seconds a second, where `workers` give `seconds`."""
    for count, rate in zip(workers, seconds, strict=True):
        if rate >= need:
            return f"{count} (measured)"
    if (
        len(workers) < 2
        or (slope := (seconds[-1] - seconds[-2]) / (workers[-1] - workers[-2])) <= 0
    ):
        return "more do not help here"
    return f"{workers[-1] + (need - seconds[-1]) / slope:.0f} (extrapolated)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--codec", required=True, help="folder of a codec")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--task", default="tse", choices=("sr", "tse", "rtse", "aec", "vc"))
    parser.add_argument("--buckets", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--need", type=float, help="seconds of target that training takes a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        datasets = make(Path(folder), options)
        counts = ", ".join(map(str, options.workers))
        print(f"{options.task}, {options.buckets} buckets, {os.cpu_count()} cores")
        print(f"| kept | MB an hour | records/s with {counts} workers | target s/s | for --need |")
        print("|---|---|---|---|---|")
        for name, dataset in datasets.items():
            hours = dataset.metadata["statistics"]["hours"]
            size = sum(path.stat().length for path in dataset.path.glob("*array_record*"))
            records = [
                BATCH * batches_per_second(dataset, workers, options.buckets)
                for workers in options.workers
            ]
            seconds = [SECONDS * rate for rate in records]
            wanted = workers_for(options.need, options.workers, seconds) if options.need else ""
            print(
                f"| {name} | {size / hours / 1e6:.1f} | "
                f"{', '.join(f'{rate:.0f}' for rate in records)} | "
                f"{', '.join(f'{rate:.0f}' for rate in seconds)} | {wanted} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

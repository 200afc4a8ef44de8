"""What a language model learns from: tokenised datasets, one a task, mixed."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from data_pipelines import Batches, TokenisedDataset, open_tokenised, positions_in, token_batches
from quark_jax.conditioning import Conditioner
from quark_jax.encoders import features_hash
from quark_jax.errors import UserError
from quark_jax.lm import TASK_IDS, LMConfig, Packing, Targets
from quark_jax.training.sharding import batch_part

Batch = Mapping[str, jax.Array]
Datasets = Mapping[str, TokenisedDataset]
_SAMPLE = 2048  # records of a dataset that are counted, at most
_MEASURED = 16  # batches of as many sequences, of which features are measured
_LONGEST = 16  # captions of a split whose tokens are counted


@dataclass(frozen=True)
class LMData:
    """What a language model is trained on.

    `dataset` is the folder of a tokenised dataset; or, where there are `weights`, of several, each
    in a folder of the name it has there, as launch/tokenise.py makes one of each task.
    """

    dataset: str = ""
    weights: dict[str, float] | None = None  # how often to draw from each: {"sr": 2, "tse": 1}
    codec: str = ""  # folder of the codec that made the codes
    batch_size: int = 16  # sequences, or rows where they are packed, over all devices
    buckets: int = 1  # lengths of target that are told apart; a batch is of one
    packing: Packing | None = None  # sequences that share rows
    workers: int = 0  # processes that read; 0 reads in threads
    heldout: int = 64  # sequences of each dataset evaluated on, at most
    heard: int = 2  # of them generated where audio is evaluated


def open_datasets(data: LMData, codec_hash: str) -> Datasets:
    """The datasets that `data` names, but for those of weight 0. Raises UserError where one is
    missing, incomplete or of another codec."""
    if data.weights is None:
        return {"dataset": open_tokenised(data.dataset, codec_hash=codec_hash)}
    folders = {n: epath.Path(data.dataset) / n for n, weight in data.weights.items() if weight}
    if not folders:
        raise UserError("data.weights: all are 0; give at least one dataset more")
    return {name: open_tokenised(folder, codec_hash=codec_hash) for name, folder in folders.items()}


def check_conditioning(datasets: Datasets, conditioner: Conditioner) -> None:
    """Raises UserError where a dataset holds features of another encoder than the conditioner's, or
    captions that it has no encoder for, or that are too long."""
    own = features_hash(conditioner.config.audio)
    for name, dataset in datasets.items():
        about = dataset.metadata["conditioning"]
        if about["kind"] == "features" and about["encoder_hash"] != own:
            raise UserError(
                f"{name}: holds features of {about['encoder']} ({about['encoder_hash']}), but "
                f"conditioner.audio is another encoder, or has other settings ({own}); set those "
                "that the dataset was made with"
            )
        if dataset.metadata["caption_bytes"] and conditioner.text is None:
            raise UserError(
                f"{name}: has captions; give the folder of a text encoder as conditioner.text"
            )
        if dataset.metadata["caption_bytes"]:
            _check_captions(dataset, conditioner)


def _check_captions(dataset: TokenisedDataset, conditioner: Conditioner) -> None:
    """That the longest captions fit is seen here, not in the midst of a run."""
    for split in ("train", "heldout"):
        records, lengths = dataset.records(split), dataset.lengths(split)[:, 3]
        for index in np.argsort(lengths)[::-1][:_LONGEST]:
            conditioner.tokens(records[int(index)]["caption"].decode())


def training_batches(
    datasets: Datasets,
    data: LMData,
    lm: LMConfig,
    conditioner: Conditioner,
    *,
    seed: int,
    mesh: Mesh,
) -> Batches:
    """This process's part of the batches to train on, endless."""
    options = _text_options(datasets, conditioner)
    if data.packing:
        longest = options.get("caption_length", 0)
        options["positions"] = positions_in(lm, caption_length=longest)
    part, parts = batch_part(mesh)
    return token_batches(
        datasets,
        batch_size=data.batch_size,
        seed=seed,
        weights=data.weights and {name: data.weights[name] for name in datasets},
        buckets=data.buckets,
        packing=data.packing,
        shard_index=part,
        shard_count=parts,
        num_workers=data.workers,
        **options,
    )


def sample_batches(
    datasets: Datasets, data: LMData, conditioner: Conditioner, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """A few hundred sequences to train on, the same in every process."""
    batches = token_batches(
        datasets,
        batch_size=_MEASURED,
        seed=seed,
        weights=data.weights and {name: data.weights[name] for name in datasets},
        **_text_options(datasets, conditioner),
    )
    with closing(batches):
        yield from islice(batches, _MEASURED)


def heldout_batches(
    datasets: Datasets,
    conditioner: Conditioner,
    *,
    batch_size: int,
    count: int,
    mesh: Mesh | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The first `count` held-out sequences of each dataset, or as many as there are, in batches of
    at most `batch_size`; on a mesh, this process's part of batches that divide over it. All batches
    of a dataset have one shape."""
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
    part, parts = batch_part(mesh) if mesh else (0, 1)
    for name, dataset in datasets.items():
        size = min(batch_size, count, dataset.splits["heldout"]) // multiple * multiple
        size = max(size, multiple)
        batches = token_batches(
            {name: dataset},
            split="heldout",
            batch_size=size,
            train=False,
            shard_index=part,
            shard_count=parts,
            **_text_options({name: dataset}, conditioner),
        )
        with closing(batches):
            yield from islice(batches, max(1, count // size))


def _text_options(datasets: Datasets, conditioner: Conditioner) -> dict[str, Any]:
    if not any(dataset.metadata["caption_bytes"] for dataset in datasets.values()):
        return {}
    length = conditioner.config.text.max_tokens
    return {"text": conditioner.tokens, "caption_length": length}


def read_targets(batch: Batch, config: LMConfig) -> Targets:
    """The codes of a batch as the model counts them: with the lengths of their segments, where the
    frame rate is dynamic."""
    streams = (
        with_lengths(batch[name], batch.get("segments"), size)
        for name, size in (
            ("acoustic", config.acoustic_size),
            ("semantic", config.semantic_size),
        )
    )
    return Targets(*streams, batch["frames"])


def with_lengths(codes, segments, size: int):
    """Codes [..., codebooks, T], arrays of NumPy or JAX, that carry the lengths `segments` [..., T]
    of their segments; as they are where there are none."""
    if segments is None or segments.shape[-1] == 0:
        return codes
    return codes + size * (segments - 1).clip(0)[..., None, :]


def unigrams(datasets: Datasets, split: str, config: LMConfig) -> dict[str, np.ndarray]:
    """The unigram model of each task that occurs in a split, in the order of the tasks' ids:
    probabilities [2, codebooks, codes] of the acoustic and the semantic codes, each layer by
    itself. To every count half a time is added, so that no code is impossible. Of a large dataset,
    as many as `_SAMPLE` records spread over it are counted."""
    sizes = np.array([config.acoustic_size, config.semantic_size])
    codes = np.arange(sizes.max() * config.max_segment)
    none = 0.5 * (codes < config.max_segment * sizes[:, None])
    counts: dict[str, np.ndarray] = {}
    for dataset in datasets.values():
        records = dataset.records(split)
        step = -(-len(records) // _SAMPLE)
        for index in range(0, len(records), step):
            record = records[index]
            own = counts.setdefault(
                record["task"].decode(), np.stack([none] * config.codebooks, axis=1)
            )
            for stream, name in enumerate(("acoustic", "semantic")):
                found = with_lengths(record[name].astype(int), record["segments"], sizes[stream])
                for layer, row in enumerate(found):
                    own[stream, layer] += np.bincount(row, minlength=len(codes))
    return {
        task: counts[task] / counts[task].sum(-1, keepdims=True)
        for task in sorted(counts, key=TASK_IDS.get)
    }

"""The making of pre-tokenised datasets: `tokenise`, here or with Apache Beam.

A dataset appears under its name only when it is complete. Shards that are done are kept beside it
until then, so that an interrupted run goes on with the shard it was in.

`token_batches` mixes datasets by weight, so make one a task: then weights can change, and a task
can join or be made anew, without the others. A source that gives several tasks works too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines.examples import Source
from data_pipelines.records import Codes, Networks
from data_pipelines.shards import (
    EXAMPLES_PER_SHARD,
    SKIPPED,
    Builder,
    Shard,
    Work,
    done,
    prefix_of,
    shards_of,
    short_hash,
)
from data_pipelines.tokenised import TokenisedDataset, open_tokenised, place_of
from quark_jax.errors import UserError, optional_import


@dataclass(frozen=True)
class Beam:
    """How to make a dataset with Apache Beam.

    Attributes:
        make: gives the sources and the networks; pickled, and called once in each worker process,
            so that neither recordings nor weights travel with the graph.
        options: Beam's pipeline options, as on a command line.
    """

    make: Callable[[], tuple[Mapping[str, Source], Networks]]
    options: tuple[str, ...] = ()


def tokenise(
    sources: Mapping[str, Source],
    encode: Callable[[np.ndarray, np.ndarray], Codes],
    folder: str | Path,
    *,
    codec: str,
    codec_hash: str,
    hop: int | None = None,
    features: Callable[[np.ndarray, np.ndarray], Any] | None = None,
    encoder: str = "",
    encoder_hash: str = "",
    batch_size: int = 8,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    progress: bool = True,
    beam: Beam | None = None,
) -> TokenisedDataset:
    """Makes a dataset of the examples of `sources`, their targets encoded; or finishes or reuses
    one that was begun with the same arguments.

    Args:
        sources: by split, "train" and "heldout"; all of one rate.
        encode, hop, features, batch_size, codec_hash, encoder_hash: as in `Networks`; `features`
            keeps those of input and reference instead of the audio.
        folder: where the dataset goes.
        codec: the codec's name.
        encoder: name of what computes `features`.
        examples_per_shard: examples a file; what an interruption can cost. Readers keep every
            file open: have no more of them than the system lets a process open.
        progress: show a progress bar.
        beam: run on Beam; what it makes has to be what the other arguments say.

    Raises:
        UserError: if `folder` holds a dataset made with another codec or of other examples, or
            cannot be written to; if a source is empty; or if a worker of Beam has others.
    """
    networks = Networks(encode, hop, features, batch_size, codec_hash, encoder_hash)
    metadata = _describe(sources) | {
        "codec": codec,
        "codec_hash": codec_hash,
        "conditioning": {"kind": "audio"}
        if features is None
        else {"kind": "features", "encoder": encoder, "encoder_hash": encoder_hash},
        "examples_per_shard": examples_per_shard,
    }
    if (place_of(folder) / "dataset_info.json").is_file():
        return _complete(folder, metadata)
    work = Work(sources, networks, metadata["prefixes"], _begin(folder, metadata))
    counts = {split: len(source) for split, source in sources.items()}
    shards = shards_of(counts, examples_per_shard)

    def make_all() -> None:
        if beam is not None:
            _on_beam(beam, work, shards)
        else:
            _here(work, shards, progress)

    try:
        Builder(metadata, shards, work, make_all, data_dir=str(folder)).download_and_prepare()
    except OSError as error:
        reason = (error.strerror or str(error)).partition("\n")[0]
        raise UserError(
            f"{folder}: cannot be written ({reason}); free some space, there and for temporary "
            "files, and run the same command again: it goes on with what is missing"
        ) from error
    _remove(place_of(folder).parent, "shards-*")
    dataset = open_tokenised(folder)
    _print_about(folder, dataset)
    return dataset


def _print_about(folder: str | Path, dataset: TokenisedDataset) -> None:
    made = dataset.metadata["statistics"]
    print(
        f"{folder}: {_counts(dataset.splits)}, {made['hours']:.2f} h of audio "
        f"({made['hours_per_hour']:.0f} audio hours per hour of a process)"
    )
    for split, count in made["skipped"].items():
        if count:
            listed = dataset.path / SKIPPED
            print(f"{folder}: {split}: passed over {count} recordings; the reasons are in {listed}")


def _complete(folder: str | Path, metadata: dict[str, Any]) -> TokenisedDataset:
    """The dataset that is there, if it is the one wanted."""
    dataset = open_tokenised(folder, codec_hash=metadata["codec_hash"])
    _refuse_other_examples(folder, dataset.metadata, metadata)
    print(f"{folder}: already complete ({_counts(dataset.splits)}); nothing to do")
    _remove(dataset.path.parent, "shards-*")
    return dataset


def _begin(folder: str | Path, metadata: dict[str, Any]) -> epath.Path:
    """The folder of the shards of such a dataset, which may be there."""
    parent = place_of(folder).parent
    _remove(parent, "incomplete.*")
    place = parent / f"shards-{short_hash(metadata)}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder that can be written to"
        ) from error
    return place


def _here(work: Work, shards: list[Shard], progress: bool) -> None:
    with tqdm(
        total=sum(shard.stop - shard.start for shard in shards),
        initial=sum(shard.stop - shard.start for shard in done(work.folder, shards)),
        desc="Tokenising",
        unit=" examples",
        disable=not progress,
    ) as bar:
        for shard in shards:
            work.make(shard, bar.update)


def _on_beam(beam: Beam, work: Work, shards: list[Shard]) -> None:
    optional_import("apache_beam", use="make a dataset with Beam", extra="beam")
    from data_pipelines.beam import make_shards

    missing = sorted(set(shards) - set(done(work.folder, shards)))
    make_shards(missing, beam.make, work, beam.options)


def _remove(folder: epath.Path, pattern: str) -> None:
    """Removes what interrupted runs left in `folder`."""
    for left in folder.glob(pattern):
        left.rmtree()


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.items()) + " examples"


def _describe(sources: Mapping[str, Source]) -> dict[str, Any]:
    """What the examples depend on; two runs that agree in this have the same ones."""
    for split, source in sources.items():
        if len(source) == 0:
            raise UserError(f"split {split!r} has no examples; give it recordings")
    rates = {source.rate for source in sources.values()}
    seconds = {source.seconds for source in sources.values()}
    if len(rates) != 1 or len(seconds) != 1:
        raise UserError(f"the splits differ in rate {rates} or seconds {seconds}; make them equal")
    splits = {split: source.describe() for split, source in sources.items()}
    return {
        "rate": rates.pop(),
        "seconds": seconds.pop(),
        "splits": splits,
        "prefixes": {split: prefix_of(split, about) for split, about in splits.items()},
    }


def _refuse_other_examples(
    folder: str | Path, found: dict[str, Any], wanted: dict[str, Any]
) -> None:
    for name in ("rate", "seconds", "splits", "conditioning"):
        if place := _difference(name, found[name], wanted[name]):
            raise UserError(
                f"{folder}: was made with {place[0]} {place[1]}, but this run has {place[2]}; "
                "tokenise into another folder"
            )


def _difference(name: str, found: Any, wanted: Any) -> tuple[str, Any, Any] | None:
    """Where two JSON values differ first, and what stands there in each."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        places = (_difference(f"{name}.{key}", found[key], wanted[key]) for key in found)
        return next(filter(None, places), None)
    return None if found == wanted else (name, found, wanted)

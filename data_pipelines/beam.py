"""Shards of a pre-tokenised dataset made by the workers of an Apache Beam pipeline.

The graph holds only the numbers of the shards. A worker process calls `make` once, and all its
threads share what it gives: the sources, and the networks with their weights.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from etils import epath

from data_pipelines.examples import Source
from data_pipelines.records import Networks
from data_pipelines.shards import Shard, Work, prefix_of
from quark_jax.errors import UserError

_Make = Callable[[], tuple[Mapping[str, Source], Networks]]
# What a worker raises comes back as text, with where it was raised before and after it.
_TOLD = re.compile(
    r"\b(?:UserError|MissingPackage|Unreachable): (.*?)(?: \[while running .*)?$", re.MULTILINE
)


class _MakeShard(beam.DoFn):
    def __init__(self, make: _Make, made_of: Mapping[str, str], folder: str):
        self._make, self._made_of, self._folder = make, dict(made_of), folder
        self._shared = Shared()

    def setup(self) -> None:
        self._work = self._shared.acquire(self._load)

    def process(self, shard: tuple) -> Iterator[str]:
        self._work.make(shard := Shard(*shard))
        yield shard.file

    def _load(self) -> Work:
        sources, networks = self._make()
        prefixes = {name: prefix_of(name, source.describe()) for name, source in sources.items()}
        work = Work(sources, networks, prefixes, epath.Path(self._folder))
        for name, found in _made_of(work).items():
            if found != self._made_of.get(name):
                raise UserError(
                    f"{self._folder}: a worker has another {name} ({found}) than where the job "
                    f"was started ({self._made_of.get(name)}); give all the same manifests, codec "
                    "and encoder"
                )
        return work


def make_shards(shards: Sequence[Shard], make: _Make, work: Work, options: Sequence[str]) -> None:
    """Makes `shards` in the folder of `work`, which every worker has to see; returns when all are
    done.

    Raises:
        UserError: if a worker raises it, or `make` gives it other examples or weights than those
            of `work`.
    """
    if not shards:
        return
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | beam.Create([tuple(shard) for shard in shards])
                | beam.Reshuffle()  # otherwise one worker may get them all
                | beam.ParDo(_MakeShard(make, _made_of(work), str(work.folder)))
            )
    except Exception as error:
        if told := _TOLD.search(f"{type(error).__name__}: {error}"):
            raise UserError(told[1]) from error
        raise


def _made_of(work: Work) -> dict[str, str]:
    """What the records depend on, each under a name to tell people."""
    return {
        **{f"set of {split} examples": prefix for split, prefix in work.prefixes.items()},
        "codec": work.networks.codec_hash,
        "encoder": work.networks.encoder_hash,
    }

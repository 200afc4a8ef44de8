"""Shards of a pre-tokenised dataset made by the workers of an Apache Beam pipeline.

The graph holds only the numbers of the shards. A worker process calls `make` once, and all its
threads share what it gives: the sources, and the networks with their weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared
from etils import epath

from data_pipelines.examples import Source
from data_pipelines.records import Networks
from data_pipelines.shards import Shard, Work


class _MakeShard(beam.DoFn):
    def __init__(
        self,
        make: Callable[[], tuple[Mapping[str, Source], Networks]],
        prefixes: Mapping[str, str],
        folder: str,
    ):
        self._make, self._prefixes, self._folder = make, dict(prefixes), folder
        self._shared = Shared()

    def setup(self) -> None:
        self._work = self._shared.acquire(self._load)

    def process(self, shard: tuple) -> Iterator[str]:
        self._work.make(shard := Shard(*shard))
        yield shard.file

    def _load(self) -> Work:
        return Work(*self._make(), self._prefixes, epath.Path(self._folder))


def make_shards(
    shards: Sequence[Shard],
    make: Callable[[], tuple[Mapping[str, Source], Networks]],
    prefixes: Mapping[str, str],
    folder: epath.Path,
    options: Sequence[str],
) -> None:
    """Makes `shards` in `folder`, which every worker has to see; returns when all are done."""
    if not shards:
        return
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create([tuple(shard) for shard in shards])
            | beam.Reshuffle()  # otherwise one worker may get them all
            | beam.ParDo(_MakeShard(make, prefixes, str(folder)))
        )

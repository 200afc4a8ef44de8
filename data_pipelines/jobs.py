"""The making of a tokenised dataset, said in a few fields (launch/tokenise.py is its command).

Each process that works on a job holds all recordings of its manifests, about 700 bytes each. Of a
corpus too large for that, make a job of each part of its manifest; `token_batches` joins datasets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from data_pipelines.alignment_files import read_alignments
from data_pipelines.examples import Source
from data_pipelines.examples.tasks import make_source
from data_pipelines.features import FeatureEncoder
from data_pipelines.manifests import Entry, read_manifest
from data_pipelines.records import Networks
from data_pipelines.shards import EXAMPLES_PER_SHARD
from data_pipelines.tokenised import TokenisedDataset
from data_pipelines.tokenising import Beam, tokenise
from quark_jax.encoders import FeatureConfig
from quark_jax.errors import UserError
from quark_jax.hcodec import Tokeniser


@dataclass(frozen=True)
class Job:
    """A dataset of one task. Small, to travel to Beam's workers, each of which loads what it names.

    Attributes:
        task: of `examples.tasks.TASK_SOURCES`.
        manifests: the recordings, in one or several files; each has an id of its own.
        codec: folder of the codec.
        splits: of the manifest, each of which becomes one of the dataset.
        seconds: length of an example, or of the longest.
        seed: of everything random; that of split i is len(splits) * seed + i.
        rounds: examples of each recording, every one made anew.
        features: None keeps input and reference as audio; "log_mel" or the folder of an encoder
            (the average of its hidden states) keeps those features.
        layers: the hidden states to average (`FeatureConfig.layers`); None: all.
        window: seconds that a Whisper hears at once (`FeatureConfig.window`).
        batch_size: examples encoded at once.
        alignments: words of the recordings, a CTM file or a folder of TextGrids, for the tasks that
            edit speech.
    """

    task: str
    manifests: str | tuple[str, ...]
    codec: str
    splits: tuple[str, ...] = ("train", "heldout")
    seconds: float = 5.0
    seed: int = 0
    rounds: int = 1
    features: str | None = None
    layers: tuple[int, ...] | None = None
    window: float | None = None
    batch_size: int = 8
    alignments: str | None = None

    def load(self) -> tuple[Mapping[str, Source], Networks]:
        """The examples of each split, and what is computed of them.

        Raises:
            UserError: where something named is missing, or does not fit the task.
        """
        codec = _tokeniser(self.codec)
        heard = self._features
        networks = Networks(
            codec.encode_batch,
            codec.config.hop,
            heard,
            self.batch_size,
            codec_hash=codec.weights_hash,
            encoder_hash=heard.hash if heard else "",
        )
        entries = read_manifest(*self._manifests)
        return {
            split: self._source(entries, split, number) for number, split in enumerate(self.splits)
        }, networks

    def run(
        self,
        folder: str,
        *,
        examples_per_shard: int = EXAMPLES_PER_SHARD,
        beam: Sequence[str] = (),
    ) -> TokenisedDataset:
        """Makes the dataset in `folder`, or finishes it; by Beam, if there are options for it."""
        sources, networks = self.load()
        return tokenise(
            sources,
            networks.encode,
            folder,
            codec=_tokeniser(self.codec).config.name,
            codec_hash=networks.codec_hash,
            hop=networks.hop,
            features=networks.features,
            encoder=self._features.name if self._features else "",
            encoder_hash=networks.encoder_hash,
            batch_size=networks.batch_size,
            examples_per_shard=examples_per_shard,
            beam=Beam(self.load, tuple(beam)) if beam else None,
        )

    @property
    def _features(self) -> FeatureEncoder | None:
        for field in ("layers", "window"):
            if getattr(self, field) is not None and not self.features:
                raise UserError(f"features_{field}: there are no features; leave it out")
        if not self.features:
            return None
        return _feature_encoder(self.features, self.layers, self.window)

    @property
    def _manifests(self) -> tuple[str, ...]:
        return (self.manifests,) if isinstance(self.manifests, str) else self.manifests

    def _source(self, entries: Sequence[Entry], split: str, number: int) -> Source:
        of_split = [entry for entry in entries if entry.split == split]
        if not of_split:
            raise UserError(
                f"{', '.join(self._manifests)}: no recordings of split {split!r}; give some "
                "lines that split, or leave it out"
            )
        options = {
            "rate": _tokeniser(self.codec).config.sample_rate,
            "seconds": self.seconds,
            "seed": len(self.splits) * self.seed + number,
            "split": split,
        }
        if self.alignments and self.task in ("edit", "edit-speech"):
            words = read_alignments(self.alignments, entries)
            own = {entry.id for entry in of_split}  # which may have none
            options["alignments"] = {name: found for name, found in words.items() if name in own}
        once = make_source(self.task, entries, **options)
        if self.rounds == 1:
            return once
        return make_source(self.task, entries, **options, length=len(once) * self.rounds)


@cache
def _tokeniser(folder: str) -> Tokeniser:
    return Tokeniser.load(folder)


@cache
def _feature_encoder(
    name: str, layers: tuple[int, ...] | None, window: float | None
) -> FeatureEncoder:
    network = {} if name == "log_mel" else {"kind": "hugging_face", "folder": name}
    return FeatureEncoder(FeatureConfig(**network, layers=layers, window=window))

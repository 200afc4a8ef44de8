"""What is done for each point of a sweep, by the functions that do it elsewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines import Entry, TokenisedDataset, make_source, tokenise
from data_pipelines.alignments import Word
from quark_jax.errors import UserError
from quark_jax.evaluation import codebook_use
from quark_jax.evaluation.clips import judge, missing_packages, shown
from quark_jax.evaluation.codec import METRICS, code, draw, result
from quark_jax.evaluation.readers import Item
from quark_jax.hcodec import HCodec, Tokeniser
from quark_jax.sweep.config import Listening, Point, Tokens
from quark_jax.sweep.words import PLACES, frames_by_place
from quark_jax.training import lm as lm_training
from quark_jax.training.metrics import read_metrics

_HALVINGS = 16  # of the range of thresholds


def codec_at(
    point: Point, trained: Tokeniser, entries: Sequence[Entry], listening: Listening
) -> Tokeniser:
    """A codec of dynamic frame rate at the threshold of a point, given or chosen on the clips that
    it is judged on: rates differ much between speakers, and points are to be compared at equal
    ones."""
    threshold = point.threshold
    if threshold is None:
        rate = trained.config.sample_rate
        waves = [entry.read(rate) for entry in _clips(entries, listening)]
        threshold = threshold_for(trained, waves, point.rate)
    dynamic = replace(trained.config.dynamic, threshold=threshold)
    config = replace(trained.config, dynamic=dynamic)
    return Tokeniser(HCodec.from_torch(trained.codec.to_torch(), config), trained.features)


def threshold_for(tokeniser: Tokeniser, waves: Sequence[np.ndarray], rate: float) -> float:
    """The threshold at which `waves` [samples] have `rate` segments a second, or the nearest to
    that: the rate rises with the threshold, and is as high as it gets from 1 on."""
    sample_rate = tokeniser.config.sample_rate
    seconds = sum(map(len, waves)) / sample_rate

    def rate_at(threshold: float) -> float:
        files = (tokeniser.encode(wave, sample_rate, threshold=threshold) for wave in waves)
        return sum(file.codes.lengths.size for file in files) / seconds

    low, high = -1.0, 1.0
    for _ in tqdm(range(_HALVINGS), desc="choosing a threshold", leave=False):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_at(middle) < rate else (low, middle)
    return min((low, high), key=lambda threshold: abs(rate_at(threshold) - rate))


def _clips(entries: Sequence[Entry], listening: Listening) -> list[Entry]:
    speech = [entry for entry in entries if entry.domain in ("speech", "")]
    return draw(speech, listening.clips, seconds=listening.seconds, seed=listening.seed)


def evaluated(
    name: str, tokeniser: Tokeniser, entries: Sequence[Entry], listening: Listening
) -> dict[str, Any]:
    """Records of held-out clips, with values under `name`, and a line for each missing package."""
    rows, rate = {name: partial(code, tokeniser, None)}, tokeniser.config.sample_rate
    columns = {key: METRICS[key] for key in listening.metrics}
    clips = tqdm(_clips(entries, listening), desc="evaluating", unit="clip")
    records = [judge(result(Item(c.id, (c,)), rate, rows, lambda: columns)) for c in clips]
    return {"clips": shown(records), "missing": missing_packages(records)}


def spent_in_words(
    tokeniser: Tokeniser,
    entries: Sequence[Entry],
    words: Mapping[str, Sequence[Word]],
    listening: Listening,
) -> dict[str, Any]:
    """Frames and seconds of each of `PLACES`, over held-out recordings whose words are known."""
    known = [entry for entry in entries if entry.id in words]
    drawn = draw(known, listening.words, seconds=listening.seconds, seed=listening.seed)
    rate = tokeniser.config.sample_rate
    spent = {place: np.zeros(2) for place in PLACES}
    for entry in tqdm(drawn, desc="words", unit="clip"):
        wave = entry.read(rate)
        lengths = tokeniser.encode(wave, rate).codes.lengths[0]
        frame_rate = tokeniser.config.frame_rate
        found = frames_by_place(lengths, frame_rate, len(wave) / rate, words[entry.id])
        for place, part in found.items():
            spent[place] += part
    places = {
        place: {"frames": float(frames), "seconds": float(seconds)}
        for place, (frames, seconds) in spent.items()
    }
    return {"recordings": len(drawn), "places": places}


def tokenised(
    tokeniser: Tokeniser, entries: Sequence[Entry], tokens: Tokens, folder: str | PathLike
) -> dict[str, Any]:
    """Make the dataset of a codec; what its held-out codes are like."""
    # The first examples are of the first recordings, which a manifest has speaker by speaker.
    order = np.random.default_rng(tokens.seed).permutation(len(entries))
    shuffled = [entries[place] for place in order]
    sources = {
        split: make_source(
            "sr",
            shuffled,
            rate=tokeniser.config.sample_rate,
            seconds=tokens.seconds,
            seed=2 * tokens.seed + number,
            length=getattr(tokens, split),
            split=split,
            config=tokens.degradation,
        )
        for number, split in enumerate(("train", "heldout"))
    }
    dataset = tokenise(
        sources,
        tokeniser.encode_batch,
        folder,
        codec=tokeniser.config.name,
        codec_hash=tokeniser.weights_hash,
        hop=tokeniser.config.hop,
    )
    return _codes(dataset, tokeniser)


def _codes(dataset: TokenisedDataset, tokeniser: Tokeniser) -> dict[str, Any]:
    """Tokens a second, the use of the codebooks, and how many segments have each length, of the
    held-out examples."""
    records = dataset.records("heldout")
    records = [records[index] for index in range(len(records))]
    seconds = len(records) * dataset.metadata["seconds"]
    size, made = tokeniser.config.quantiser.codebook_size, {}
    tokens = 0
    for stream in ("acoustic", "semantic"):
        codes = np.concatenate([record[stream] for record in records], axis=-1)
        tokens += codes.size
        of_each = [codebook_use(np.bincount(row, minlength=size)) for row in codes]
        use, perplexity = zip(*of_each, strict=True)
        made[stream] = {"use": use, "perplexity": perplexity}
    segments = None
    if tokeniser.config.dynamic:
        lengths = np.concatenate([record["segments"] for record in records])
        counts = np.bincount(lengths, minlength=tokeniser.config.dynamic.longest + 1)
        segments = counts[1:].tolist()
    return {"tokens": tokens / seconds, "codebooks": made, "segments": segments}


def learned(
    config: lm_training.LMTraining,
    codec: PathLike,
    dataset: PathLike,
    workdir: PathLike,
    tokens: float,
) -> dict[str, float]:
    """Train a language model on a dataset of so many `tokens` a second; its held-out loss.

    Raises UserError where that is not finite.
    """
    data = replace(config.data, dataset=str(dataset), codec=str(codec))
    lm_training.train(replace(config, data=data), workdir)
    row = next(row for row in reversed(read_metrics(workdir)) if "heldout/nats_per_code" in row)
    found = {
        name: row[f"heldout/{name}"]
        for name in ("nats_per_code", "accuracy", "unigram_nats_per_code")
    }
    if not all(map(math.isfinite, found.values())):
        raise UserError(f"{workdir}: its held-out loss is not finite; lower lm.optimiser.peak")
    found["nats_per_second"] = found["nats_per_code"] * tokens
    found["unigram_nats_per_second"] = found["unigram_nats_per_code"] * tokens
    return found

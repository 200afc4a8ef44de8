"""The points of a sweep, one after another: codec, evaluation, tokens, language model, record.

WORKDIR/codecs/NAME has a codec's training, WORKDIR/points/NAME all else of a point, and record.json
there what the report is made of. Either has a config.json of all that it depends on.
"""

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from data_pipelines import Entry, read_manifest
from data_pipelines.alignments import Word, read_alignments
from quark_jax.config import differences, to_dict
from quark_jax.errors import Stopped, UserError
from quark_jax.files import alone_in, read_json, replacing
from quark_jax.hcodec import HCodecConfig, Tokeniser
from quark_jax.sweep.config import Point, Sweep
from quark_jax.sweep.stages import codec_at, evaluated, learned, spent_in_words, tokenised
from quark_jax.training import codec as codec_training

RECORD, FAILURE = "record.json", "failure.json"
# What may change between two calls: none of it changes what comes out.
_FREE = re.compile(r"(^|\.)(run\.(mesh|log_every|save_every|keep|profile)|data\.workers)(\.|$)")
_AGAIN = "delete it and run the same command again"


@dataclass(frozen=True)
class Corpus:
    """What the points of a sweep are trained and judged on."""

    sweep: Sweep

    @cached_property
    def entries(self) -> list[Entry]:
        """All recordings. Raises UserError where a split is missing."""
        if not self.sweep.manifest:
            raise UserError("manifest: not set; give the recordings, as --config.manifest=M.jsonl")
        entries = read_manifest(self.sweep.manifest)
        for split in ("train", "heldout"):
            if all(entry.split != split for entry in entries):
                raise UserError(
                    f"{self.sweep.manifest}: no recordings of split {split!r}; give some lines "
                    "that split"
                )
        return entries

    @cached_property
    def words(self) -> Mapping[str, list[Word]]:
        """The words of held-out recordings, by `Entry.id`. Raises UserError where there are to be
        some, and are none."""
        if self.sweep.alignments is None:
            return {}
        heldout = [entry for entry in self.entries if entry.split == "heldout"]
        return read_alignments(self.sweep.alignments, heldout)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What tells this corpus from another, wherever its files lie."""
        found = {"manifest": _hash(Path(self.sweep.manifest))}
        if self.sweep.alignments is not None:
            found["alignments"] = _hash(Path(self.sweep.alignments))
        return found


def run_sweep(
    sweep: Sweep, workdir: str | PathLike, *, index: int = 0, of: int = 1
) -> dict[str, str]:
    """Make the records of those points in `workdir` that lack theirs: of all, or of the share
    `index` (from 0) of `of`. Points of one codec are in one share. What was interrupted is gone on
    with, what is done is left as it is.

    Returns the reason of each point, by name, that failed; the others are made all the same.

    Raises UserError, before anything is done, where the corpus cannot be used, another run is at
    work on one of the codecs, or a point was begun with another config. Raises Stopped as `fit`.
    """
    corpus, workdir = Corpus(sweep), Path(workdir)
    _ = corpus.entries, corpus.words
    used = dict.fromkeys(point.codec for point in sweep.points)
    shares = list(used)[index::of]
    points = [point for point in sweep.points if point.codec in shares]
    markers = _markers(corpus, workdir, points)
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        for name in shares:
            stack.enter_context(alone_in(workdir / "codecs" / name))
        for folder, depends in markers.items():
            _mark(folder, depends)
        order = sorted(points, key=lambda point: shares.index(point.codec))
        for number, point in enumerate(order, 1):
            _tell(f"point {number} of {len(order)}: {point.name}")
            if reason := _attempt(corpus, workdir, point):
                failures[point.name] = reason
                _tell(f"point {point.name} failed: {reason}")
            jax.clear_caches()  # the next one has other programs
    return failures


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _attempt(corpus: Corpus, workdir: Path, point: Point) -> str | None:
    """Make a point's record; None, or why there is none, which is kept beside."""
    folder = workdir / "points" / point.name
    failure = folder / FAILURE
    failure.unlink(missing_ok=True)
    try:
        _kept(folder / RECORD, lambda: _record(corpus, workdir, point))
        return None
    except Stopped:
        raise
    except UserError as error:
        reason = str(error)
    except Exception as error:  # of whatever kind: the points after this one can be made
        traceback.print_exc()
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    with replacing(failure) as beside:
        beside.write_text(json.dumps({"reason": reason}))
    return reason


def _record(corpus: Corpus, workdir: Path, point: Point) -> dict[str, Any]:
    """All stages of a point; those that are done are read."""
    sweep, folder = corpus.sweep, workdir / "points" / point.name
    codec = sweep.codec_of(point)
    trained = _trained(sweep, codec, workdir / "codecs" / codec.name)
    place = trained
    if codec.dynamic:
        place = folder / "codec"
        if not (place / "config.json").is_file():  # which is written last
            trained_codec = Tokeniser.load(trained)
            codec_at(point, trained_codec, corpus.entries, sweep.listening).save(place)
    tokeniser = Tokeniser.load(place)
    heard = _kept(
        folder / "evaluation.json",
        lambda: evaluated(point.name, tokeniser, corpus.entries, sweep.listening),
    )
    words = None
    if codec.dynamic and corpus.words:
        words = _kept(
            folder / "words.json",
            lambda: spent_in_words(tokeniser, corpus.entries, corpus.words, sweep.listening),
        )
    codes = tokenised(tokeniser, corpus.entries, sweep.tokens, folder / "tokens")
    return {
        "point": to_dict(point),
        "codec": _about(codec),
        "threshold": tokeniser.config.dynamic.threshold if codec.dynamic else None,
        **heard,
        "words": words,
        **codes,
        "lm": learned(sweep.lm, place, folder / "tokens", folder / "lm", codes["tokens"]),
    }


def _trained(sweep: Sweep, codec: HCodecConfig, folder: Path) -> Path:
    """The folder of a codec, once it is trained."""
    made = folder / "run" / "model" / "codec"

    def train() -> dict[str, Any]:
        codec_training.train(sweep.training_of(codec), folder / "run")
        return {"steps": sweep.codec.run.steps}

    _kept(folder / "done.json", train)
    return made


def _about(codec: HCodecConfig) -> dict[str, Any]:
    return {
        "name": codec.name,
        "frame_rate": codec.frame_rate,
        "dynamic": codec.dynamic is not None,
        "codebooks": codec.quantiser.codebooks,
        "codebook_size": codec.quantiser.codebook_size,
        "bitrate": codec.bitrate,
    }


def _markers(corpus: Corpus, workdir: Path, points: list[Point]) -> dict[Path, dict[str, Any]]:
    """What each folder of the points depends on. Raises UserError where one was begun otherwise."""
    sweep, wanted = corpus.sweep, {}
    rest = {name: to_dict(getattr(sweep, name)) for name in ("tokens", "lm", "listening")}
    for point in points:
        codec = sweep.codec_of(point)
        of_codec = {
            "codecs": to_dict(codec),
            "codec": to_dict(sweep.codec),
            "manifest": corpus.hashes["manifest"],
        }
        wanted[workdir / "codecs" / codec.name] = of_codec
        wanted[workdir / "points" / point.name] = (
            of_codec | rest | {"points": to_dict(point)} | corpus.hashes
        )
    for folder, depends in wanted.items():
        marker = folder / "config.json"
        if not marker.is_file():
            continue
        changed = differences(read_json(marker, _AGAIN), json.loads(json.dumps(depends)))
        if changed := [name for name in changed if not _FREE.search(name)]:
            raise UserError(
                f"{folder}: was begun with another {', '.join(changed)}; give the same config, "
                "another --workdir, or delete this folder to make it anew"
            )
    return wanted


def _mark(folder: Path, depends: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (marker := folder / "config.json").is_file():
        with replacing(marker) as beside:
            beside.write_text(json.dumps(depends, indent=1))


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, from the file that an earlier call left, if there is one."""
    if path.is_file():
        return read_json(path, _AGAIN)
    made = make()
    with replacing(path) as beside:
        beside.write_text(json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False))
    return made


def _hash(path: Path) -> str:
    """Sixteen hexadecimal digits of a file, or of all files below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]

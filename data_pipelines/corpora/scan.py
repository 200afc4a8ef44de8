"""Looking at every recording of a corpus: what can be used is written to a manifest.

What was found is kept in a journal beside the manifest, so that running a scan again looks only at
what is new or has changed, also after an interrupt. Nothing grows in memory with the corpus.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from data_pipelines.corpora.base import Corpus, LeftOut
from data_pipelines.corpora.journal import Found, Journal, Version, open_journal
from data_pipelines.corpora.workers import workers as worker_pool
from data_pipelines.cuts import why_unusable
from data_pipelines.manifests import Entry, Unreachable, in_bucket, local_copy, write_manifest
from data_pipelines.simulation import is_silent
from quark_jax import audio
from quark_jax.errors import UserError
from quark_jax.files import replacing

_GROUP = 32  # recordings that a worker looks at in one go


@dataclass(frozen=True)
class Rules:
    """What the entries get besides what their corpus says.

    Attributes:
        name: of the corpus; goes before every id and speaker, so that corpora can be joined.
            Empty for none.
        language, licence, source, domain: for entries that have none.
        split: of all entries; None leaves those of the corpus.
        heldout_speakers: as the corpus names them; go into the split "heldout".
        heldout_share: of the speakers, about, that go there, chosen by a hash of their names: no
            speaker is in two splits. Recordings without a speaker are chosen one by one.
    """

    name: str = ""
    language: str = ""
    licence: str = ""
    source: str = ""
    domain: str = ""
    split: str | None = None
    heldout_speakers: frozenset[str] = field(default_factory=frozenset)
    heldout_share: float = 0.0

    def apply(self, entry: Entry) -> Entry:
        """The entry as the rules make it."""
        heldout = entry.speaker in self.heldout_speakers or (
            _share(entry.speaker or entry.id) < self.heldout_share
        )
        return replace(
            entry,
            id=self._named(entry.id),
            speaker=self._named(entry.speaker),
            language=entry.language or self.language,
            licence=entry.licence or self.licence,
            source=entry.source or self.source,
            domain=entry.domain or self.domain,
            split="heldout" if heldout else self.split or entry.split,
        )

    def _named(self, text: str) -> str:
        return f"{self.name}/{text}" if self.name and text else text


@dataclass
class Summary:
    """What a scan did: recordings in the manifest and their hours, what was left out (vanished
    files among it), and how many recordings were `looked_at`, the others being known."""

    recordings: int = 0
    hours: float = 0.0
    left_out: int = 0
    vanished: int = 0
    looked_at: int = 0


def left_out_path(manifest: Path) -> Path:
    """Where a scan lists what it left out."""
    return manifest.with_suffix(".left_out.jsonl")


def scan(
    corpus: Corpus,
    out: str | Path,
    *,
    rules: Rules = Rules(),
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Decodes the recordings of a corpus and writes the manifest of those that can be used.

    Beside OUT.jsonl come OUT.left_out.jsonl, which lists everything else with a reason (damaged,
    silent, missing, listed twice, vanished since the last scan), and OUT.scan.sqlite, the journal.

    Args:
        corpus: the recordings, in the order of the manifest.
        out: the manifest to write, in a folder of this machine.
        rules: what entries get besides what the corpus says.
        workers: processes that decode; 1 does it in this one, None takes one a core.
        progress: show a progress bar.

    Raises:
        UserError: if the corpus cannot be read, nothing in it can be used, a speaker who is to be
            held out is not in it, or `out` cannot be written. An older manifest stays as it is.
    """
    out = Path(out)
    summary = Summary()
    with (
        replacing(left_out_path(out)) as beside,
        beside.open("w", encoding="utf-8") as listed,
        open_journal(out.with_suffix(".scan.sqlite")) as journal,
        worker_pool(workers) as in_order,
        tqdm(desc="Scanning", unit=" recordings", disable=not progress) as bar,
        suppress(_NothingUsable),  # with that, the list of what was left out is still written
    ):

        def leave_out(item: LeftOut) -> None:
            summary.left_out += 1
            listed.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")

        def usable() -> Iterator[Entry]:
            not_met = set(rules.heldout_speakers)
            for look in _look_at_all(corpus, journal, in_order):
                bar.update()
                summary.looked_at += look.new
                item = _decide(look, rules, journal)
                if isinstance(item, LeftOut):
                    leave_out(item)
                    continue
                not_met.discard(look.item.speaker)
                summary.recordings += 1
                summary.hours += item.seconds / 3600
                yield item
            if summary.recordings and not_met:
                raise UserError(
                    f"--heldout-speakers {', '.join(sorted(not_met))}: no recording that can be "
                    "used is theirs; give names as the corpus has them"
                )
            for key in journal.forget_vanished():
                summary.vanished += 1
                leave_out(LeftOut(key, "vanished: there at the last scan, not in the corpus"))
            if not summary.recordings:
                raise _NothingUsable

        write_manifest(usable(), out)
    if not summary.recordings:
        raise UserError(
            f"{out}: not written, none of the recordings can be used; the reasons are in "
            f"{left_out_path(out)}"
        )
    return summary


class _NothingUsable(Exception):
    """Nothing to write a manifest of."""


@dataclass(frozen=True)
class _Look:
    """An item of a corpus, and for a recording the version of its file, what was found of it, and
    whether that is new."""

    item: Entry | LeftOut
    version: Version = None
    found: Found | None = None
    new: bool = False


def _decide(look: _Look, rules: Rules, journal: Journal) -> Entry | LeftOut:
    """The entry of a recording as it goes into the manifest, or why it does not."""
    item, found = look.item, look.found
    if isinstance(item, LeftOut):
        return item
    journal.keep(item, look.version, found)
    if found.reason:
        return LeftOut(str(item.path), found.reason)
    entry = replace(
        rules.apply(item), seconds=found.seconds, rate=found.rate, channels=found.channels
    )
    if taken := journal.claim(entry):
        return LeftOut(str(entry.path), f"its id {entry.id!r} is that of {taken}; give another")
    return entry


def _look_at_all(corpus: Corpus, journal: Journal, in_order: Callable) -> Iterator[_Look]:
    """Looks at what is not known, in the order of the corpus."""

    def groups() -> Iterator[tuple[list[_Look], list[Entry] | None]]:
        items = iter(corpus)
        while group := [_recall(item, journal) for item in islice(items, _GROUP)]:
            yield group, [look.item for look in group if look.new] or None

    for group, results in in_order(_look, groups()):
        fresh = iter(results or ())
        for look in group:
            yield replace(look, found=next(fresh)) if look.new else look


def _recall(item: Entry | LeftOut, journal: Journal) -> _Look:
    if isinstance(item, LeftOut):
        return _Look(item)
    version, found = journal.recall(item)
    return _Look(item, version, found, new=found is None)


def _look(entries: list[Entry]) -> list[Found]:
    return [_look_at(entry) for entry in entries]


def _look_at(entry: Entry) -> Found:
    """Decodes a recording, or a section of one."""
    try:
        with local_copy(entry.path) as path:
            header = audio.info(path)
            if entry.start or entry.frames is not None:
                rest = max(header.samples - entry.start, 1)
                wave = replace(entry, path=path).read(header.rate, samples=entry.frames or rest)
                samples, silent = len(wave), is_silent(wave)
            else:
                # A list, not any(): damage after the first audible block has to be met as well.
                silent = all([is_silent(block) for block in audio.read_blocks(path)])
                samples = header.samples
    except UserError as error:
        closed = not in_bucket(entry.path) and not os.access(entry.path, os.R_OK)
        try:
            return Found(reason=why_unusable(entry, error), lasting=not closed)
        except Unreachable as fault:
            return Found(reason=str(fault).removeprefix(f"{entry.path}: "), lasting=False)
    seconds = round(samples / header.rate, 4)
    return Found(seconds, header.rate, header.channels, "silent" if silent else "")


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) / 2**64

"""python -m data_pipelines.corpora: scan a corpus, write its manifest."""

import argparse
import sys
from pathlib import Path

from data_pipelines.corpora import (
    CAPTION_SETS,
    LAYOUTS,
    Corpus,
    Folder,
    Manifest,
    Rules,
    Tfds,
    by_pattern,
    left_out_path,
    scan,
)
from quark_jax.commands import guarded
from quark_jax.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.corpora",
        description="Look at every recording of a corpus and write a manifest of those that can be "
        "used; the others are listed beside it. Run again, it looks only at what is new.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    common = _common()

    folder = kinds.add_parser("folder", parents=[common], help="all audio below a folder")
    folder.add_argument("corpus", metavar="FOLDER")
    layout = folder.add_mutually_exclusive_group()
    layout.add_argument(
        "--layout", choices=LAYOUTS, help="speaker and text as this corpus has them"
    )
    layout.add_argument(
        "--pattern", help="regular expression on the path, with groups as (?P<speaker>[^/]+)"
    )
    folder.add_argument(
        "--text-suffix", metavar=".txt", help="of files with the text, beside audio"
    )

    manifest = kinds.add_parser("manifest", parents=[common], help="JSON lines, or an scp list")
    manifest.add_argument("corpus", metavar="MANIFEST")
    manifest.add_argument(
        "--root", type=Path, help="where all audio lies (default: beside the list)"
    )

    dataset = kinds.add_parser("tfds", parents=[common], help="a prepared TFDS dataset")
    dataset.add_argument("corpus", metavar="NAME", help="as librispeech, or the dataset's folder")
    dataset.add_argument(
        "--export", required=True, type=Path, help="where its audio is put, as FLAC"
    )
    dataset.add_argument("--data-dir", help="where TFDS keeps datasets (default: its own)")
    dataset.add_argument("--tfds-splits", nargs="+", default=(), help="these alone (default: all)")
    dataset.add_argument(
        "--field",
        nargs="+",
        default=(),
        metavar="FIELD=FEATURE",
        help="as text=sentence; audio=FEATURE for one of several",
    )

    for name, kind in CAPTION_SETS.items():
        about = f"captions of {kind.__name__}, with a folder of its audio"
        captions = kinds.add_parser(name, parents=[common], help=about)
        captions.add_argument("corpus", nargs="+", metavar="LIST", help="as published")
        captions.add_argument("--audio", required=True, help="the folder of audio")
    for kind in kinds.choices.values():
        kind.add_argument("out", type=Path, metavar="OUT", help="the manifest to write, as .jsonl")
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--name", default="", help="of the corpus; goes before every id and speaker"
    )
    for field in ("language", "licence", "source", "domain"):
        common.add_argument(f"--{field}", default="", help="where the corpus says nothing")
    common.add_argument("--split", help="of all recordings (default: as the corpus says, or train)")
    common.add_argument(
        "--heldout-speakers", nargs="+", default=(), help="go into the split heldout"
    )
    common.add_argument(
        "--heldout-share",
        type=float,
        default=0.0,
        help="of the speakers, chosen by a hash of the name, that go into the split heldout",
    )
    common.add_argument("--workers", type=int, help="processes that decode (default: one a core)")
    return common


def _corpus(given: argparse.Namespace) -> Corpus:
    if given.kind == "folder":
        layout = LAYOUTS.get(given.layout)
        if given.pattern is not None:
            layout = by_pattern(given.pattern)
        return Folder(given.corpus, layout=layout, text_suffix=given.text_suffix)
    if given.kind == "manifest":
        return Manifest(given.corpus, root=given.root)
    if given.kind == "tfds":
        pairs = [pair.partition("=") for pair in given.field]
        if bad := [name for name, equals, _ in pairs if not equals]:
            raise UserError(f"--field {bad[0]}: give FIELD=FEATURE, as text=sentence")
        return Tfds(
            given.corpus,
            given.export,
            data_dir=given.data_dir,
            splits=tuple(given.tfds_splits),
            fields={name: feature for name, _, feature in pairs},
            workers=given.workers,
        )
    return CAPTION_SETS[given.kind](given.corpus, given.audio)


def _scan(given: argparse.Namespace) -> None:
    if not 0 <= given.heldout_share < 1:
        raise UserError(f"--heldout-share {given.heldout_share}: give a share from 0 to below 1")
    rules = Rules(
        name=given.name,
        language=given.language,
        licence=given.licence,
        source=given.source,
        domain=given.domain,
        split=given.split,
        heldout_speakers=frozenset(given.heldout_speakers),
        heldout_share=given.heldout_share,
    )
    done = scan(_corpus(given), given.out, rules=rules, workers=given.workers)
    print(
        f"{given.out}: {done.recordings} recordings, {done.hours:.2f} h; {done.looked_at} looked at"
    )
    if done.left_out:
        vanished = f", {done.vanished} of them vanished" if done.vanished else ""
        print(f"left out: {done.left_out}{vanished}; reasons in {left_out_path(given.out)}")


def _main() -> int:
    given = _parser().parse_args()
    return guarded(lambda: _scan(given))


if __name__ == "__main__":
    sys.exit(_main())

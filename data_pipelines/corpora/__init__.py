"""Corpora of recordings, and the scan that makes a manifest of one.

    python -m data_pipelines.corpora KIND SOURCE OUT.jsonl

`--help` lists the kinds: a folder of audio, a manifest, a TFDS dataset, sets of captioned sounds.
"""

from data_pipelines.corpora.base import Corpus, LeftOut, Manifest
from data_pipelines.corpora.captions import (
    CAPTION_SETS,
    AudioCaps,
    CaptionSet,
    Clotho,
    Esc50,
    WavCaps,
)
from data_pipelines.corpora.folders import LAYOUTS, Folder, by_pattern, librispeech, vctk
from data_pipelines.corpora.scan import Rules, Summary, left_out_path, scan
from data_pipelines.corpora.tfds_sets import Tfds

__all__ = [
    "CAPTION_SETS",
    "LAYOUTS",
    "AudioCaps",
    "CaptionSet",
    "Clotho",
    "Corpus",
    "Esc50",
    "Folder",
    "LeftOut",
    "Manifest",
    "Rules",
    "Summary",
    "Tfds",
    "WavCaps",
    "by_pattern",
    "left_out_path",
    "librispeech",
    "scan",
    "vctk",
]

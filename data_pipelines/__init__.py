"""From recordings to training batches: manifests, simulation, examples, datasets, loaders."""

from pathlib import Path

from etils import epy

# Lazy, so that a part runs as a command, and without loading the others' libraries.
with epy.lazy_api_imports(globals()):
    from data_pipelines.examples import Example, SpeechRestoration
    from data_pipelines.loader import Batches, codec_batches
    from data_pipelines.manifests import Entry, iterate_manifest, read_manifest, write_manifest
    from data_pipelines.sequences import example_batches, token_batches
    from data_pipelines.simulation import Degradation, degrade
    from data_pipelines.tokenised import Beam, TokenisedDataset, open_tokenised, tokenise

__all__ = [
    "Batches",
    "Beam",
    "Degradation",
    "Entry",
    "Example",
    "SpeechRestoration",
    "TokenisedDataset",
    "codec_batches",
    "degrade",
    "example_batches",
    "iterate_manifest",
    "open_tokenised",
    "read_manifest",
    "samples_manifest",
    "token_batches",
    "tokenise",
    "write_manifest",
]


def samples_manifest() -> Path:
    """The manifest of the recordings that come with the project."""
    return Path(__file__).parent / "samples" / "manifest.jsonl"

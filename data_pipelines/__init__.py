"""From recordings to training batches: manifests, simulation, examples, datasets, loaders."""

from pathlib import Path

from etils import epy

# Lazy, so that a part runs as a command, and without loading the others' libraries.
with epy.lazy_api_imports(globals()):
    from data_pipelines.examples import (
        TASK_SOURCES,
        EchoCancellation,
        EventEditing,
        Example,
        LanguageQueriedSeparation,
        OtherSpeakerExtraction,
        Source,
        SpeechEditing,
        SpeechRestoration,
        TargetSpeakerExtraction,
        TaskMixture,
        TextToAudio,
        VoiceConversion,
        make_source,
    )
    from data_pipelines.jobs import Job
    from data_pipelines.loader import Batches, codec_batches
    from data_pipelines.manifests import Entry, iterate_manifest, read_manifest, write_manifest
    from data_pipelines.packing import positions_in
    from data_pipelines.sequences import example_batches, token_batches
    from data_pipelines.simulation import Degradation, degrade
    from data_pipelines.tokenised import TokenisedDataset, open_tokenised
    from data_pipelines.tokenising import Beam, tokenise

__all__ = [
    "TASK_SOURCES",
    "Batches",
    "Beam",
    "Degradation",
    "EchoCancellation",
    "Entry",
    "EventEditing",
    "Example",
    "Job",
    "LanguageQueriedSeparation",
    "OtherSpeakerExtraction",
    "Source",
    "SpeechEditing",
    "SpeechRestoration",
    "TargetSpeakerExtraction",
    "TaskMixture",
    "TextToAudio",
    "TokenisedDataset",
    "VoiceConversion",
    "codec_batches",
    "degrade",
    "example_batches",
    "iterate_manifest",
    "make_source",
    "open_tokenised",
    "positions_in",
    "read_manifest",
    "samples_manifest",
    "token_batches",
    "tokenise",
    "write_manifest",
]


def samples_manifest() -> Path:
    """The manifest of the recordings that come with the project."""
    return Path(__file__).parent / "samples" / "manifest.jsonl"

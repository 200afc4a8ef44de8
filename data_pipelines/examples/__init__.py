"""Examples of the tasks: what goes in, what has to come out.

A source of examples is a map (seed, index) -> `Example`: the same pair gives the same example on
any machine, whatever else was drawn before.
"""

from data_pipelines.examples.base import (
    INPUT_RATE,
    Example,
    RecordedSource,
    Source,
    fingerprint,
    generator,
)
from data_pipelines.examples.echo import EchoCancellation
from data_pipelines.examples.editing import SpeechEditing, SpeechEdits
from data_pipelines.examples.event_editing import EventEditing, EventEdits
from data_pipelines.examples.events import LanguageQueriedSeparation, Mixing, TextToAudio
from data_pipelines.examples.mixture import TaskMixture
from data_pipelines.examples.speech import (
    OtherSpeakerExtraction,
    SpeechRestoration,
    TargetSpeakerExtraction,
)
from data_pipelines.examples.tasks import TASK_SOURCES, make_source
from data_pipelines.examples.voice import VoiceConversion

__all__ = [
    "INPUT_RATE",
    "TASK_SOURCES",
    "EchoCancellation",
    "EventEditing",
    "EventEdits",
    "Example",
    "LanguageQueriedSeparation",
    "Mixing",
    "OtherSpeakerExtraction",
    "RecordedSource",
    "Source",
    "SpeechEditing",
    "SpeechEdits",
    "SpeechRestoration",
    "TargetSpeakerExtraction",
    "TaskMixture",
    "TextToAudio",
    "VoiceConversion",
    "fingerprint",
    "generator",
    "make_source",
]

"""From the name of a task and the recordings of a manifest to a source of its examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.alignments import Word
from data_pipelines.examples.base import INPUT_RATE, Source
from data_pipelines.examples.echo import EchoCancellation
from data_pipelines.examples.editing import SpeechEditing
from data_pipelines.examples.event_editing import EventEditing
from data_pipelines.examples.events import LanguageQueriedSeparation, TextToAudio
from data_pipelines.examples.mixture import TaskMixture
from data_pipelines.examples.speech import (
    OtherSpeakerExtraction,
    SpeechRestoration,
    TargetSpeakerExtraction,
)
from data_pipelines.examples.voice import VoiceConversion
from data_pipelines.manifests import Entry
from data_pipelines.simulation import Degradation
from quark_jax.errors import UserError

_IN_NOISE: dict[str, Callable[..., Source]] = {
    "sr": SpeechRestoration,
    "tse": TargetSpeakerExtraction,
    "rtse": OtherSpeakerExtraction,
    "aec": EchoCancellation,
}
_OF_CAPTIONS: dict[str, Callable[..., Source]] = {
    "lass": LanguageQueriedSeparation,
    "tta": TextToAudio,
    "edit-events": EventEditing,
}
TASK_SOURCES = (*_IN_NOISE, "vc", *_OF_CAPTIONS, "edit-speech", "edit")


def make_source(
    task: str,
    entries: Sequence[Entry],
    *,
    rate: int = INPUT_RATE,
    seconds: float = 5.0,
    seed: int = 0,
    length: int | None = None,
    alignments: Mapping[str, Sequence[Word]] | None = None,
    split: str | None = None,
    config: Degradation | None = None,
) -> Source:
    """The examples of a task, with the published settings, out of what `entries` has for it.

    - sr, tse, rtse, aec, vc: speech is what is of domain "speech", or of none; recordings of
      domain "noise" are the noise, and those of domain "room" the room responses, if there are any
      (both are made otherwise; vc needs neither);
    - lass, tta, edit-events: all that have captions;
    - edit-speech: all that have alignments;
    - edit: edit-events and edit-speech, each as often; the one there are recordings for, if only
      one.

    Args:
        task: one of `TASK_SOURCES`.
        entries: recordings of any kind.
        rate: rate of the targets in Hz.
        seconds: length of an example, or the longest one.
        seed: of everything random, 0 or more.
        length: number of examples; None for one a recording.
        alignments: the words of each recording by `Entry.id`.
        split: take recordings of this split only; None for all. Where it has no noise, or no
            rooms, those of all splits are taken rather than made ones: they are neither what is
            restored nor who speaks.
        config: the degradations of sr, tse and rtse; None for those published for the task.

    Raises:
        UserError: if there is no such task, or nothing to make its examples of.
    """
    if task not in TASK_SOURCES:
        raise UserError(f"task {task!r} is unknown; choose one of {', '.join(TASK_SOURCES)}")
    given: dict[str, Any] = {"rate": rate, "seconds": seconds, "seed": seed, "length": length}
    surroundings = {name: _of_domain(entries, name, split) for name in ("noise", "room")}
    if split is not None:
        entries = _of_split(entries, split)
    if task in _OF_CAPTIONS:
        return _OF_CAPTIONS[task](entries, **given)
    if task == "edit":
        return _make_edits(entries, alignments, given)
    if task == "edit-speech":
        if not alignments:
            raise UserError(
                "task 'edit-speech' needs word alignments; "
                "make them with python -m data_pipelines.alignments"
            )
        return SpeechEditing(entries, alignments, **given)
    speech = [entry for entry in entries if entry.domain in ("speech", "")]
    if not speech:
        raise UserError(
            f"task {task!r} needs speech; no recording is of domain 'speech' or of none"
        )
    if task == "vc":
        return VoiceConversion(speech, **given)
    if surroundings["room"]:
        given["rooms"] = surroundings["room"]
    if config is not None:
        given["config"] = config
    return _IN_NOISE[task](speech, noise=surroundings["noise"], **given)


def _of_split(entries: Sequence[Entry], split: str) -> list[Entry]:
    found = [entry for entry in entries if entry.split == split]
    if not found:
        raise UserError(
            f"no recordings of split {split!r}; give some lines of the manifest that split"
        )
    return found


def _of_domain(entries: Sequence[Entry], domain: str, split: str | None) -> list[Entry]:
    """Those of a split, or if it has none, of all."""
    found = [entry for entry in entries if entry.domain == domain]
    return [entry for entry in found if entry.split == split] or found


def _make_edits(
    entries: Sequence[Entry],
    alignments: Mapping[str, Sequence[Word]] | None,
    given: dict[str, Any],
) -> Source:
    sources: list[Source] = []
    if any(entry.captions for entry in entries):
        sources.append(EventEditing(entries, **given))
    if alignments:
        sources.append(SpeechEditing(entries, alignments, **given))
    if not sources:
        raise UserError(
            "task 'edit' needs recordings with captions, or word alignments; "
            "make these with python -m data_pipelines.alignments"
        )
    if len(sources) == 1:
        return sources[0]
    return TaskMixture(sources, seed=given["seed"], length=given["length"])

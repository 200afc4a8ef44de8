"""Where a dynamic frame rate spends its frames: at the edges of words, inside, or in silence."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.alignments import Word

PLACES = ("word starts", "inside words", "word ends", "silence")
EDGE = 0.06  # seconds at the start and at the end of a word; at most half of it each


class Spent(NamedTuple):
    """Frames sent for some time of audio."""

    frames: float
    seconds: float


def frames_by_place(
    lengths: Sequence[int], frame_rate: float, seconds: float, words: Sequence[Word]
) -> Mapping[str, Spent]:
    """What of a recording goes to each of `PLACES`.

    A segment counts as one frame, spread evenly over its time: of one that lies half in a word's
    first `EDGE` seconds and half after them, half a frame goes to each. The last segment may reach
    beyond the end of the recording. Where words overlap, as alignments sometimes have them, the
    earlier one ends where the later one starts.

    Args:
        lengths: frames at the full rate in each segment, in order.
        frame_rate: the full rate, in Hz.
        seconds: of the recording.
        words: its words, in the order of their starts.
    """
    # Frames sent up to a time: straight lines between the borders of segments.
    borders = np.concatenate([[0.0], np.cumsum(lengths) / frame_rate])
    sent = np.arange(len(borders))
    parts: dict[str, list[tuple[float, float]]] = {place: [] for place in PLACES}
    before = 0.0
    for word, after in zip(words, [*words[1:], None], strict=False):
        start, end = (min(max(time, before), seconds) for time in (word.start, word.end))
        if after is not None:
            end = max(start, min(end, after.start))
        edge = min(EDGE, (end - start) / 2)
        parts["silence"].append((before, start))
        parts["word starts"].append((start, start + edge))
        parts["inside words"].append((start + edge, end - edge))
        parts["word ends"].append((end - edge, end))
        before = end
    parts["silence"].append((before, seconds))
    spent = {}
    for place, spans in parts.items():
        begins, ends = np.array(spans).reshape(-1, 2).T
        frames = np.interp(ends, borders, sent) - np.interp(begins, borders, sent)
        spent[place] = Spent(float(frames.sum()), float((ends - begins).sum()))
    return spent

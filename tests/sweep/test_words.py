"""Where frames are spent, against cases worked by hand."""

import numpy as np
import pytest

from data_pipelines.alignments import Word
from quark_jax.sweep import PLACES, frames_by_place
from quark_jax.sweep.words import EDGE


def test_a_case_worked_by_hand():
    """At 10 frames/s, segments of 4, 1, 1, 2 and 2 frames: borders at 0.4, 0.5, 0.6, 0.8 and 1.0 s.
    The word lasts from 0.4 to 0.8 s: its start of 0.06 s has 0.6 of the second segment, its end 0.3
    of the fourth, its inside the rest of these and the third."""
    assert EDGE == 0.06
    spent = frames_by_place([4, 1, 1, 2, 2], 10.0, 1.0, [Word("a", 0.4, 0.8)])
    expected = {
        "word starts": (0.6, 0.06),
        "inside words": (0.4 + 1 + 0.7, 0.28),
        "word ends": (0.3, 0.06),
        "silence": (1 + 1, 0.6),
    }
    assert list(spent) == list(PLACES)
    for place, wanted in expected.items():
        assert spent[place] == pytest.approx(wanted)


def test_a_short_word_has_halves_and_no_inside():
    spent = frames_by_place([1] * 10, 10.0, 1.0, [Word("a", 0.5, 0.58)])
    assert spent["word starts"] == pytest.approx((0.4, 0.04))
    assert spent["word ends"] == pytest.approx((0.4, 0.04))
    assert spent["inside words"] == pytest.approx((0, 0), abs=1e-12)


def test_words_that_overlap_and_what_reaches_beyond_the_end():
    """The first word ends where the second starts, the second where the recording does."""
    words = [Word("a", 0.2, 0.6), Word("b", 0.5, 1.4)]
    spent = frames_by_place([2] * 5, 10.0, 0.95, words)
    assert sum(part.seconds for part in spent.values()) == pytest.approx(0.95)
    assert spent["silence"] == pytest.approx((1.0, 0.2))
    assert spent["inside words"].seconds == pytest.approx((0.3 - 2 * EDGE) + (0.45 - 2 * EDGE))


def test_nothing_is_lost_and_a_fixed_rate_is_the_same_everywhere():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.uniform(0, 9, 12))
    words = [Word("w", s, s + d) for s, d in zip(starts, rng.uniform(0.01, 0.9, 12), strict=True)]
    lengths = rng.integers(1, 9, 80)
    spent = frames_by_place(lengths, 25.0, lengths.sum() / 25, words)
    assert sum(part.frames for part in spent.values()) == pytest.approx(80)
    for part in frames_by_place([1] * 250, 25.0, 10.0, words).values():
        assert part.frames == pytest.approx(25 * part.seconds)
    [silence] = [frames_by_place([1] * 5, 10.0, 0.5, [])["silence"]]
    assert silence == pytest.approx((5, 0.5))

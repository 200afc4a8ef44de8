"""Counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.lm import TASK_IDS, LMConfig
from quark_jax.training.codec_step import codebook_use
from quark_jax.training.lm_data import unigrams, with_lengths
from quark_jax.training.lm_step import LearningConfig, LMLearning, measures


def test_codebook_use_counts_each_layer_and_no_dropped_one():
    codes = jnp.asarray(
        [
            [[0, 1, 1, 0], [7, 7, 7, 7], [DROPPED] * 4],
            [[2, 3, 0, 1], [7, 7, 7, 0], [DROPPED] * 4],
        ]
    )
    use, perplexity = codebook_use(codes, 8)
    np.testing.assert_allclose(use, [4 / 8, 2 / 8, 0])
    # The first layer has 0 and 1 three times each, 2 and 3 once; the second 7 seven times, 0 once.
    first = (8 / 3) ** (6 / 8) * 8 ** (2 / 8)
    np.testing.assert_allclose(perplexity, [first, (8 / 7) ** (7 / 8) * 8 ** (1 / 8), 1], rtol=1e-6)


class Dataset:
    def __init__(self, task):
        self.task = task

    def records(self, split):
        assert split == "train"
        even, four, one = [0, 1, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5]
        made = [([even, four], [one, one]), ([even, four], [one, even])]
        return [
            {
                "task": self.task,
                "acoustic": np.array(acoustic, np.int16),
                "semantic": np.array(semantic, np.int16),
                "segments": np.zeros(0, np.int16),
            }
            for acoustic, semantic in made
        ]


UNIGRAM_LM = LMConfig.preset("tiny", codebooks=2, acoustic_size=8, semantic_size=7)


def test_unigrams_of_layers_and_streams_by_themselves_and_of_each_task():
    found = unigrams({"a": Dataset(b"tse"), "b": Dataset(b"sr")}, "train", UNIGRAM_LM)
    assert list(found) == ["sr", "tse"]
    # 8 codes in all, and half a time more of each that there can be.
    acoustic = np.array([[4, 4, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0, 0, 0]])
    semantic = np.array([[0, 0, 0, 0, 0, 8, 0], [2, 2, 0, 0, 0, 4, 0]])
    for shares in found.values():
        np.testing.assert_allclose(shares[0], (acoustic + 0.5) / 12)
        np.testing.assert_allclose(shares[1, :, :7], (semantic + 0.5) / 11.5)
        assert not shares[1, :, 7].any()


def test_unigrams_are_scored_on_what_is_held_out():
    learning = LMLearning(
        UNIGRAM_LM, LearningConfig(), tasks=("sr", "tse", "vc"), packing=None, seed=0
    )
    shares = np.full((3, 2, 2, 8), 1 / 8)
    shares[1] = [0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0]  # of tse
    batch = {
        "task": np.array([TASK_IDS["tse"], TASK_IDS["sr"]]),
        "acoustic": np.array([[[0, 1, 7], [0, 0, 7]], [[0, 5, 6], [3, 3, 3]]]),
        "semantic": np.array([[[1, 1, 7], [2, 0, 7]], [[0, 5, 6], [3, 3, 3]]]),
        "frames": np.array([2, 3]),  # the last frame of tse is not there
    }
    sums = learning.score_unigram(shares, batch)
    found = measures(sums, learning.tasks)
    # Of tse 0 four times, 1 three times, 2 once; of sr all are as likely, and 0 is the first.
    tse = np.log(2) * (4 * 1 + 3 * 2 + 1 * 3)
    assert float(found["tse/nats_per_code"]) == pytest.approx(tse / 8)
    assert float(found["tse/accuracy"]) == pytest.approx(4 / 8)
    assert float(found["sr/nats_per_code"]) == pytest.approx(np.log(8))
    assert float(found["sr/accuracy"]) == pytest.approx(2 / 12)
    assert float(found["nats_per_code"]) == pytest.approx((tse + 12 * np.log(8)) / 20)
    assert np.isnan(found["vc/accuracy"])


def test_codes_carry_the_lengths_of_their_segments():
    codes = np.array([[[3, 7, 0], [1, 2, 0]]])
    segments = np.array([[2, 1, 0]])
    expected = [[[3 + 8, 7, 0], [1 + 8, 2, 0]]]
    np.testing.assert_array_equal(with_lengths(codes, segments, 8), expected)
    np.testing.assert_array_equal(with_lengths(jnp.array(codes), jnp.array(segments), 8), expected)
    assert with_lengths(codes, None, 8) is codes

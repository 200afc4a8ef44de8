"""Counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.lm import LMConfig
from quark_jax.training.codec_step import codebook_use
from quark_jax.training.lm_data import unigrams, with_lengths


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


def test_unigrams_of_layers_and_streams_by_themselves_and_of_each_task():
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

    config = LMConfig.preset("tiny", codebooks=2, acoustic_size=8, semantic_size=8)
    found = unigrams({"a": Dataset(b"tse"), "b": Dataset(b"sr")}, "train", config)
    assert list(found) == ["sr", "tse"] and found["sr"] == found["tse"]
    mixed = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))  # half 5, a quarter 0, a quarter 1
    wanted = np.mean([np.log(2), np.log(4), 0.0, mixed])
    assert found["sr"].entropy == pytest.approx(wanted)
    assert found["sr"].accuracy == pytest.approx(np.mean([1 / 2, 1 / 4, 1, 1 / 2]))


def test_codes_carry_the_lengths_of_their_segments():
    codes = np.array([[[3, 7, 0], [1, 2, 0]]])
    segments = np.array([[2, 1, 0]])
    expected = [[[3 + 8, 7, 0], [1 + 8, 2, 0]]]
    np.testing.assert_array_equal(with_lengths(codes, segments, 8), expected)
    np.testing.assert_array_equal(with_lengths(jnp.array(codes), jnp.array(segments), 8), expected)
    assert with_lengths(codes, None, 8) is codes

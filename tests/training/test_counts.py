"""Counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from quark_jax.hcodec.quantiser import DROPPED
from quark_jax.training.codec_step import codebook_use
from quark_jax.training.lm import unigram_entropy


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


def test_unigram_entropy_of_layers_and_streams_by_themselves():
    class Dataset:
        metadata = {"codebooks": 2}  # noqa: RUF012

        def records(self, split):
            assert split == "train"
            even, four, one = [0, 1, 0, 1], [0, 1, 2, 3], [5, 5, 5, 5]
            yield {"acoustic": np.array([even, four]), "semantic": np.array([one, one])}
            yield {"acoustic": np.array([even, four]), "semantic": np.array([one, even])}

    mixed = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))  # half 5, a quarter 0, a quarter 1
    wanted = np.mean([np.log(2), np.log(4), 0.0, mixed])
    assert unigram_entropy(Dataset(), "train", 8) == pytest.approx(wanted)

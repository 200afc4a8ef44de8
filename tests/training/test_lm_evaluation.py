"""What is heard of codes, and what is said of it."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from quark_jax.lm import LMConfig, Targets
from quark_jax.training.lm_evaluation import _metrics, _waves


class Codec:
    """Its audio is the codes of the first semantic layer, two samples a frame."""

    config = SimpleNamespace(hop=2)

    def decode_batch(self, codes, frames):
        assert codes.lengths is None
        semantic = np.asarray(codes.semantic)[:, 0]
        return np.repeat(semantic * (np.arange(semantic.shape[1]) < frames[:, None]), 2, axis=1)


def test_a_segment_lasts_for_all_of_its_frames():
    config = LMConfig.preset("tiny", acoustic_size=8, semantic_size=8, max_segment=4, codebooks=1)
    # Codes 5, 6, 7 of 3, 1 and 2 frames; codes 1, 2 of 2 and 3 frames.
    codes = jnp.array([[[5 + 16, 6, 7 + 8]], [[1 + 8, 2 + 16, 0]]])
    waves = _waves(Targets(codes, codes, jnp.array([3, 2])), config, Codec())
    wanted = [[5] * 6 + [6] * 2 + [7] * 4, [1] * 4 + [2] * 6]
    assert [wave.tolist() for wave in waves] == wanted


def test_waves_end_where_their_frames_do():
    config = LMConfig.preset("tiny", codebooks=1)
    codes = jnp.array([[[5, 6, 7]], [[1, 2, 0]]])
    waves = _waves(Targets(codes, codes, jnp.array([3, 2])), config, Codec())
    assert [wave.tolist() for wave in waves] == [[5, 5, 6, 6, 7, 7], [1, 1, 2, 2]]


def test_metrics_are_those_that_the_task_allows():
    rng = np.random.default_rng(0)
    speech = rng.normal(0, 0.1, 16000)
    pairs = [(speech, speech), (speech, speech + rng.normal(0, 0.1, 16000))]
    found = _metrics("tse", pairs, 16000)
    assert set(found) == {"heldout/tse/mel_distance", "heldout/tse/stoi"}
    assert 0.3 < found["heldout/tse/stoi"] < 1 and found["heldout/tse/mel_distance"] > 0
    # Silence has no STOI, and is left out of the mean.
    silent = _metrics("sr", [(speech, speech), (np.zeros(16000), speech)], 16000)
    assert silent["heldout/sr/stoi"] > 0.999
    assert "heldout/sr/stoi" not in _metrics("sr", [(np.zeros(16000), speech)], 16000)
    assert set(_metrics("lass", pairs, 16000)) == {"heldout/lass/mel_distance"}
    assert _metrics("edit", pairs, 16000) == {}

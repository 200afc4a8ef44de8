"""What is said of generated audio."""

import numpy as np

from quark_jax.training.lm_evaluation import _metrics


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

"""Fréchet distance against the closed form for Gaussians and scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from quark_jax.errors import UserError
from quark_jax.evaluation import frechet_audio_distance, frechet_distance


def _drawn(items: int, mean: np.ndarray, root: np.ndarray, seed: int = 0) -> np.ndarray:
    """Embeddings whose sample mean and covariance are exactly `mean` and root root^T."""
    raw = np.random.default_rng(seed).standard_normal((items, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T))).T
    return white @ root.T + mean


def test_gaussians_in_closed_form():
    one = _drawn(50, np.array([0.0, 0.0, 0.0]), np.diag([1.0, 2.0, 3.0]))
    other = _drawn(80, np.array([1.0, -2.0, 0.5]), np.diag([2.0, 2.0, 0.5]), seed=1)
    # With covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2 over deviations.
    expected = 1 + 4 + 0.25 + 1 + 0 + 6.25
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_covariances_that_do_not_commute_as_scipy():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + rng.standard_normal(12)
    other = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12))
    covariances = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2)
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)
    few = one[:6]  # singular
    assert np.isfinite(frechet_distance(few, other))


def test_files_in_pieces_equal_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("quark_jax.evaluation.frechet._ROWS", 7)
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((40, 5)) + 3, rng.standard_normal((30, 5)).astype(np.float32)
    np.save(tmp_path / "one.npy", one)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    np.save(tmp_path / "other" / "a.npy", other[0])  # of one item
    np.save(tmp_path / "other" / "deep" / "b.npy", other[1:])
    found = frechet_audio_distance(tmp_path / "one.npy", tmp_path / "other")
    assert found == pytest.approx(frechet_distance(one, other))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 4)), "4 channels"),
        (np.ones((1, 5)), "1 embeddings; give two or more"),
        (np.full((3, 5), np.nan), "finite"),
        (np.ones((2, 3, 5)), r"float64 \[2, 3, 5\]"),
        (np.ones((2, 5), int), "int64"),
        (np.array([{}, {}]), "cannot be read as .npy"),
        (None, "holds no .npy files"),
    ],
)
def test_what_is_no_set_of_embeddings_is_refused(tmp_path, array, message):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).standard_normal((9, 5)))
    (tmp_path / "bad").mkdir()
    if array is not None:
        np.save(tmp_path / "bad" / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        frechet_audio_distance(tmp_path / "good.npy", tmp_path / "bad")

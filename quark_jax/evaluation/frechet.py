"""Fréchet distance between two sets of embeddings, as the Fréchet audio distance (FAD) is."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from quark_jax.errors import UserError

_ROWS = 65536  # read at once


def frechet_distance(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of embeddings [items, channels].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) with means m and covariances C (of items - 1), of
    Kilgour et al. 2019 (arXiv 1812.08466); 0 for equal sets. With fewer items than channels it is
    far too low.

    Raises:
        UserError: where the two differ in channels, one has less than two items, or is not finite.
    """
    return _distance(_moments("reference", [reference]), _moments("estimate", [estimate]))


def frechet_audio_distance(reference: str | PathLike, estimate: str | PathLike) -> float:
    """`frechet_distance` of embeddings on disk, in memory of one piece at a time: each a .npy file
    [items, channels], or a folder of such files (one of [channels] counts as one item).

    Raises:
        UserError: also where a file cannot be read, or there is none.
    """
    return _distance(*(_moments(str(path), _pieces(Path(path))) for path in (reference, estimate)))


def _pieces(path: Path) -> Iterator[np.ndarray]:
    files = sorted(path.rglob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no .npy files; give embeddings, [items, channels]")
    for file in files:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file}: cannot be read as .npy ({error}); give an array [items, channels]"
            ) from error
        if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
            raise UserError(
                f"{file}: {array.dtype} {list(array.shape)}; give floats [items, channels]"
            )
        array = np.atleast_2d(array)
        for start in range(0, len(array), _ROWS):
            yield array[start : start + _ROWS]


def _moments(name: str, pieces: Iterable[np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    """Mean [channels] and covariance [channels, channels] of all items, joined piece by piece
    (Chan et al. 1979)."""
    count, mean, scatter = 0, None, None
    for piece in pieces:
        piece = np.asarray(piece, np.float64)
        if piece.ndim != 2 or not len(piece) or not np.isfinite(piece).all():
            raise UserError(f"{name}: has to be finite embeddings, [items, channels]")
        centre = piece.mean(0)
        own = (piece - centre).T @ (piece - centre)
        if mean is None:
            count, mean, scatter = len(piece), centre, own
            continue
        if piece.shape[1] != len(mean):
            raise UserError(
                f"{name}: embeddings of {piece.shape[1]} and of {len(mean)} channels; "
                "give those of one model"
            )
        both, step = count + len(piece), centre - mean
        scatter = scatter + own + np.outer(step, step) * count * len(piece) / both
        count, mean = both, mean + step * len(piece) / both
    if count < 2:
        raise UserError(f"{name}: {count} embeddings; give two or more")
    return name, mean, scatter / (count - 1)


def _distance(first: tuple, second: tuple) -> float:
    (one, mean_1, cov_1), (other, mean_2, cov_2) = first, second
    if len(mean_1) != len(mean_2):
        raise UserError(
            f"{other}: {len(mean_2)} channels, {one} has {len(mean_1)}; give those of one model"
        )
    # (C1 C2)^1/2 has the trace of (C1^1/2 C2 C1^1/2)^1/2, which is symmetric.
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    between = np.linalg.eigvalsh(root @ cov_2 @ root)
    trace = np.trace(cov_1) + np.trace(cov_2) - 2 * np.sum(np.sqrt(np.clip(between, 0, None)))
    return float(max(0.0, np.sum((mean_1 - mean_2) ** 2) + trace))

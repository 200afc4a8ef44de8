"""Packing keeps every sequence once, in rows that hold it, and fills the rows."""

import numpy as np
import pytest

from data_pipelines.packing import pack
from quark_jax.errors import UserError


def rows_of(*arguments, **options) -> list[list[int]]:
    return [row.tolist() for row in pack(*arguments, **options)]


def test_the_first_row_with_room_is_taken():
    assert rows_of([6, 5, 3, 5, 1, 10, 1], 10) == [[0, 2, 4], [1, 3], [5], [6]]
    assert rows_of([], 10) == []


def test_windows_are_packed_by_themselves():
    lengths = [6, 6, 4, 4, 4, 6]
    assert rows_of(lengths, 10) == [[0, 2], [1, 3], [4, 5]]
    assert rows_of(lengths, 10, window=2) == [[0], [1], [2, 3], [4, 5]]
    whole = np.random.default_rng(0).integers(1, 300, 5000)
    part = rows_of(whole[2048:3072], 1000, window=1024)
    ahead = len(rows_of(whole[:2048], 1000, window=1024))
    assert [[n + 2048 for n in row] for row in part] == rows_of(whole, 1000)[ahead:][: len(part)]


@pytest.mark.parametrize("window", [64, 1024])
def test_every_sequence_has_one_place_and_rows_are_full(window):
    lengths = np.random.default_rng(1).integers(50, 600, 5000)
    rows = pack(lengths, 2048, window=window)
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(5000))
    filled = np.array([lengths[row].sum() for row in rows])
    assert filled.max() <= 2048
    assert filled.sum() / (len(rows) * 2048) > {64: 0.9, 1024: 0.97}[window]


def test_a_sequence_that_fits_no_row_is_named():
    with pytest.raises(UserError, match="sequence 2 has 11 positions, a row 10"):
        pack([1, 10, 11], 10)

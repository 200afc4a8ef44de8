"""Packing: which sequences share a row of fixed length."""

from collections.abc import Sequence

import numpy as np

from quark_jax.errors import UserError


def pack(lengths: Sequence[int], capacity: int, *, window: int = 1024) -> list[np.ndarray]:
    """First-fit packing: the rows, each the numbers of the sequences in it, in order.

    Every `window` sequences in turn are packed by themselves: each goes into the first of their
    rows that has room for it. So rows come in the order of the sequences to within a window, the
    packing of one window does not depend on the others, and the same lengths give the same rows.

    Args:
        lengths: positions of each sequence, in the order in which they are read.
        capacity: positions in a row.
        window: sequences that are packed together; more of them leave fewer positions empty.

    Raises:
        UserError: if a sequence does not fit a row.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and lengths.max() > capacity:
        number = int(lengths.argmax())
        raise UserError(
            f"sequence {number} has {lengths[number]} positions, a row {capacity}; make rows longer"
        )
    rows = []
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        room = np.full(len(part), capacity)  # of as many rows as there may be
        row_of = np.empty(len(part), np.int64)
        for place, length in enumerate(part):
            row = row_of[place] = np.argmax(room >= length)
            room[row] -= length
        rows += [start + np.flatnonzero(row_of == row) for row in range(row_of.max() + 1)]
    return rows

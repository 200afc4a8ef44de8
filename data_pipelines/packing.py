"""Packing: which sequences share a row of fixed length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quark_jax.errors import UserError
from quark_jax.lm import LMConfig, Packing, feature_length, make_pattern


@dataclass(frozen=True)
class Rows:
    """Rows of sequences: `rows[i]` are the numbers of those in row i, in order.

    Attributes:
        numbers: of all sequences, row by row.
        ends: where in `numbers` each row ends.
    """

    numbers: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.numbers[self.ends[index - 1] if index else 0 : self.ends[index]]


def pack(
    numbers: np.ndarray, lengths: Sequence[int], packing: Packing, *, window: int = 1024
) -> Rows:
    """First-fit packing.

    Every `window` sequences in turn are packed by themselves: each goes into the first of their
    rows that has room for it. So rows come in the order of the sequences to within a window, the
    packing of one window does not depend on the others, and the same lengths give the same rows.

    Args:
        numbers: of the sequences, in the order in which they are packed.
        lengths: positions of each.
        packing: positions of a row, and sequences that it may hold.
        window: sequences that are packed together; more of them leave fewer positions empty.

    Raises:
        UserError: if a sequence does not fit a row.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and lengths.max() > packing.positions:
        place = int(lengths.argmax())
        raise UserError(
            f"sequence {numbers[place]} has {lengths[place]} positions, a row "
            f"{packing.positions}; make rows longer"
        )
    order, counts = [], []
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        room = np.full(len(part), packing.positions)  # of as many rows as there may be
        held = np.zeros(len(part), np.int64)
        row_of = np.empty(len(part), np.int64)
        for place, length in enumerate(part):
            row = row_of[place] = np.argmax(room >= length)
            held[row] += 1
            room[row] = room[row] - length if held[row] < packing.sequences else -1
        order.append(start + np.argsort(row_of, kind="stable"))
        counts.append(held[held > 0])
    if not order:
        return Rows(numbers, np.zeros(0, np.int64))
    return Rows(numbers[np.concatenate(order)], np.cumsum(np.concatenate(counts)))


def positions_in(
    config: LMConfig, *, caption_length: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """What tells the positions [records] of records of these lengths [records, 4] in a sequence of
    the language model of `config`.

    A caption counts for as many token ids as it has bytes, and one to end it, but at most
    `caption_length`: that is no fewer than it has. 0 is for batches without captions.
    """
    pattern = make_pattern(config)

    def positions(lengths: np.ndarray) -> np.ndarray:
        frames, *samples, caption = np.asarray(lengths).T
        # Task, start of the target, and the steps.
        total = 2 + pattern.steps(frames)
        for count in map(feature_length, samples):
            total = total + (count > 0) + (-(-count // 2) if config.stack_features else count)
        tokens = np.where(caption > 0, np.minimum(caption + 1, caption_length), 0)
        return total + (tokens > 0) + tokens

    return positions

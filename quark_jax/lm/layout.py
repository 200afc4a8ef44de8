"""Sequences: sections of unlike lengths laid end to end without gaps, right-padded as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quark_jax.nn.placement import batch_split

SECTIONS = ("caption", "reference", "input")  # in the order in which they stand


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Section:
    """Features [batch, length, channels] of one section, and how many of them are true [batch].

    An item whose length is 0 does not have the section: its start vector is left out too.
    """

    features: jax.Array
    lengths: jax.Array

    def cleared(self) -> "Section":
        """The same with zeros beyond the lengths, where features may be anything."""
        true = jnp.arange(self.features.shape[1]) < self.lengths[:, None]
        return replace(self, features=jnp.where(true[..., None], self.features, 0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix(Section):
    """What stands before step 0.

    Attributes:
      origin: rotary position of step 0 [batch].
      beside: what is added to the steps, at the input's positions; None where nothing is.
    """

    origin: jax.Array
    beside: Section | None = None

    def heard(self, steps: jax.Array, stride: float | None) -> jax.Array | float:
        """What is added where `steps` [n] are drawn next, [batch, n, width]: zeros where an item
        has no input, or it is over."""
        if self.beside is None:
            return 0.0
        batch, length, _ = self.beside.features.shape
        place = jnp.broadcast_to(jnp.floor(stride * steps).astype(jnp.int32), (batch, len(steps)))
        found = jnp.minimum(place, length - 1)[..., None]
        features = jnp.take_along_axis(self.beside.features, found, axis=1)
        return jnp.where((place < self.beside.lengths[:, None])[..., None], features, 0)

    def positions(self, place: jax.Array, stride: float | None) -> jax.Array:
        """Rotary positions of places in the sequences, [n] or [batch, n], in a shape that fits
        [batch, n]; S and the steps are `stride` apart (`LMConfig.step_stride`)."""
        if stride is None:
            return place
        step = place - self.lengths[:, None]
        return jnp.where(step < -1, place, self.origin[:, None] + stride * step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditions:
    """What conditions the items of a batch: task ids int [batch] (`tasks.TASK_IDS`), and the
    sections, None where no item of the batch has them. Audio features come at 50 Hz."""

    task: jax.Array
    caption: Section | None = None
    reference: Section | None = None
    input: Section | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Codes [batch, codebooks, T] of both streams and the true frames of each item [batch]."""

    acoustic: jax.Array
    semantic: jax.Array
    frames: jax.Array


@dataclass(frozen=True)
class Packing:
    """Sequences that share rows: `sequences` neighbours of a batch in each row of `positions`, end
    to end. Those with 0 frames take no room."""

    sequences: int
    positions: int


class Packed(NamedTuple):
    """Sequences laid out in rows."""

    features: jax.Array  # [rows, positions, width]
    positions: jax.Array  # [rows, positions], the rotary ones
    segments: jax.Array  # [rows, positions], the number of its sequence in the row
    source: jax.Array  # [rows, items * length], where the positions of each sequence lie
    fits: jax.Array  # [rows], whether all sequences have room


def pack(sequences: Section, positions: jax.Array, packing: Packing) -> Packed:
    """Lay sequences [rows * items, length, width] and their positions [rows * items, length] out in
    rows."""
    count, length, _ = sequences.features.shape
    shape = count // packing.sequences, packing.sequences
    lengths = sequences.lengths.reshape(shape)

    def rows(values: jax.Array) -> jax.Array:
        values = values.reshape(*shape, length, -1)
        pieces = [Section(values[:, i], lengths[:, i]) for i in range(packing.sequences)]
        return lay(pieces, packing.positions).features

    ends = jnp.cumsum(lengths, axis=1)
    segments = jnp.sum(jnp.arange(packing.positions) >= ends[..., None], axis=1)
    source = (ends - lengths)[..., None] + jnp.arange(length)
    return Packed(
        rows(sequences.features),
        rows(positions)[..., 0],
        segments,
        jnp.minimum(source, packing.positions - 1).reshape(shape[0], -1),
        ends[:, -1] <= packing.positions,
    )


def feature_length(samples):
    """Feature frames of `samples` (an int or an array) at 16 kHz: 50 Hz, an incomplete frame left
    out. The lengths of audio sections are these, also where the model stacks features."""
    return samples // 320


def stack_pairs(section: Section) -> Section:
    """Two neighbouring frames [batch, L, C] in one position [batch, ceil(L / 2), 2C], an odd one
    paired with zeros. Features beyond the lengths have to be zero."""
    batch, length, channels = section.features.shape
    features = jnp.pad(section.features, ((0, 0), (0, length % 2), (0, 0)))
    return Section(features.reshape(batch, -1, 2 * channels), (section.lengths + 1) // 2)


def drop_sections(conditions: Conditions, names: Sequence[str], dropped=True) -> Conditions:
    """`conditions` without the sections `names` in the items where `dropped` (bool or [batch]) is
    true: for classifier-free training and guidance. The task stays."""
    changes = {}
    for name in names:
        section = getattr(conditions, name)
        if section is not None:
            changes[name] = replace(section, lengths=jnp.where(dropped, 0, section.lengths))
    return replace(conditions, **changes)


def lay(pieces: Sequence[Section], total: int | None = None) -> Section:
    """Lay pieces [batch, length_i, width] end to end without gaps.

    Returns a section [batch, `total` or sum of length_i, width], zero beyond each item's sum of
    lengths.
    """
    if total is None:
        total = sum(piece.features.shape[1] for piece in pieces)
    place = jnp.arange(total)
    source = jnp.zeros((1, total), jnp.int32)
    begin, offset = jnp.zeros((1, 1), jnp.int32), 0
    for piece in pieces:
        end = begin + piece.lengths[:, None]
        source = jnp.where((place >= begin) & (place < end), offset + place - begin, source)
        begin, offset = end, offset + piece.features.shape[1]
    laid = batch_split(jnp.concatenate([piece.features for piece in pieces], axis=1))
    laid = batch_split(jnp.take_along_axis(laid, source[..., None], axis=1))
    return Section(laid, begin[:, 0]).cleared()

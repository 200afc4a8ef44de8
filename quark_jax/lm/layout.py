"""The prefix: sections of unlike lengths laid end to end without gaps, right-padded as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

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


def lay(pieces: Sequence[Section]) -> Section:
    """Lay pieces [batch, length_i, width] end to end without gaps.

    Returns a section [batch, sum of length_i, width], zero beyond each item's sum of lengths.
    """
    total = sum(piece.features.shape[1] for piece in pieces)
    place = jnp.arange(total)
    source = jnp.zeros((1, total), jnp.int32)
    begin, offset = jnp.zeros((1, 1), jnp.int32), 0
    for piece in pieces:
        end = begin + piece.lengths[:, None]
        source = jnp.where((place >= begin) & (place < end), offset + place - begin, source)
        begin, offset = end, offset + piece.features.shape[1]
    laid = jnp.concatenate([piece.features for piece in pieces], axis=1)
    laid = jnp.take_along_axis(laid, source[..., None], axis=1)
    return Section(laid, begin[:, 0]).cleared()

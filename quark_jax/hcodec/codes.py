"""The codes of one batch of audio: two streams, and segment lengths where the rate is dynamic."""

import dataclasses

import jax
import jax.numpy as jnp

from quark_jax.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """Plain codes of both streams.

    acoustic, semantic: integers [batch, codebooks, groups]. lengths: frames in each group [batch,
    groups], 0 where an item has no such group (its codes there mean nothing); None where the frame
    rate is fixed and a group is a frame.
    """

    acoustic: jax.Array
    semantic: jax.Array
    lengths: jax.Array | None = None

    @property
    def frames(self) -> int:
        """Codec frames of the longest item."""
        if self.lengths is None:
            return self.acoustic.shape[-1]
        return int(jnp.max(jnp.sum(self.lengths, axis=-1)))

    def packed(self, codebook_size: int) -> tuple[jax.Array, jax.Array]:
        """(acoustic, semantic) with lengths mixed in, (length - 1) * codebook_size + code, as
        published checkpoints and the language model count them; -1 where there is no group."""
        if self.lengths is None:
            return self.acoustic, self.semantic
        lengths = self.lengths[:, None]
        return tuple(
            jnp.where(lengths > 0, (lengths - 1) * codebook_size + codes, -1)
            for codes in (self.acoustic, self.semantic)
        )

    @classmethod
    def unpack(cls, acoustic: jax.Array, semantic: jax.Array, codebook_size: int) -> "Codes":
        """The inverse of `packed`; lengths are read from layer 0 of the semantic stream.

        Raises UserError where the layers or streams do not agree on a length.
        """
        acoustic, semantic = jnp.asarray(acoustic), jnp.asarray(semantic)
        lengths = jnp.where(semantic >= 0, semantic // codebook_size + 1, 0)[:, 0]
        for name, codes in (("acoustic", acoustic), ("semantic", semantic)):
            own = jnp.where(codes >= 0, codes // codebook_size + 1, 0)
            if not bool(jnp.all(own == lengths[:, None])):
                raise UserError(
                    f"{name} codes: layers disagree on segment lengths; pass codes of one "
                    f"utterance packed with codebook size {codebook_size}"
                )
        plain = (jnp.where(c >= 0, c % codebook_size, 0) for c in (acoustic, semantic))
        return cls(*plain, lengths)

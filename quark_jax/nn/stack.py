"""A stack of equal blocks: unrolled, or stored as one block with a leading axis and scanned."""

import math
from collections.abc import Callable

import jax
from flax import nnx

KEPT = "kept"  # `checkpoint_name` of what "dots" keeps beside products
_TERMS = 128  # of the sums in a product that is worth the memory


def _kept(primitive, *inputs, **params) -> bool:
    """Whether "dots" keeps what `primitive` computes: products with parameters, and what is named.
    Products of a few channels, as in rotary embedding, cost little to compute again."""
    policies = jax.checkpoint_policies
    if policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params):
        (axes, _), _ = params["dimension_numbers"]
        return math.prod(inputs[0].shape[axis] for axis in axes) >= _TERMS
    return policies.save_only_these_names(KEPT)(primitive, *inputs, **params)


REMAT_POLICIES = {
    "full": None,  # keep the input of each block, recompute the rest
    "dots": _kept,  # keep projections too, and what the attention kernel gives
}


class Stack(nnx.Module):
    """`depth` blocks applied one after another, x -> block(x, *args).

    Args:
      make_block: makes one block from `nnx.Rngs`. A block takes and returns an array of one shape
        and, where the stack is scanned or rematerialised, keeps no state of its own (no dropout).
      depth: number of blocks, at least one.
      scan: False keeps the blocks in the list `blocks`, which compiles each (fastest to run on
        small models). True keeps one block `blocks` whose parameters have a leading axis [depth],
        named "layers", and runs `lax.scan` (compile time does not grow with depth). The same
        `rngs` give the same parameters either way.
      remat: None, or what the backward pass recomputes: a name in `REMAT_POLICIES`.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        scan: bool = False,
        remat: str | None = None,
        rngs: nnx.Rngs,
    ):
        if remat is not None and remat not in REMAT_POLICIES:
            raise ValueError(f"remat={remat!r}: choose None or one of {sorted(REMAT_POLICIES)}")
        self.depth, self.scan, self.remat = depth, scan, remat
        keys = jax.random.split(rngs.params(), depth)
        if scan:
            self.blocks = jax.vmap(lambda key: make_block(nnx.Rngs(key)))(keys)
            for _, variable in nnx.iter_graph(self.blocks):
                if isinstance(variable, nnx.Variable):
                    axes = variable.get_metadata().get("axes")
                    if axes is not None:
                        variable.set_metadata(axes=("layers", *axes))
        else:
            self.blocks = nnx.List([make_block(nnx.Rngs(key)) for key in keys])

    def __call__(self, x: jax.Array, *args) -> jax.Array:
        def apply(block, x, *args):
            return block(x, *args)

        if self.remat is not None:
            policy = REMAT_POLICIES[self.remat]
            apply = jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan)
        if self.scan:
            return jax.lax.scan(lambda x, block: (apply(block, x, *args), None), x, self.blocks)[0]
        for block in self.blocks:
            x = apply(block, x, *args)
        return x

    def unstacked(self) -> list[nnx.Module]:
        """The blocks one by one, for programs that unroll them (decoding)."""
        if not self.scan:
            return list(self.blocks)
        return [jax.tree.map(lambda a, i=i: a[i], self.blocks) for i in range(self.depth)]

    def locate(self, layer: int) -> tuple[str, int | None]:
        """Path prefix and row of block `layer`, for tables of weights (`interop.Entry`)."""
        return ("blocks", layer) if self.scan else (f"blocks.{layer}", None)
